"""8-bit Adam against bitsandbytes' own optimizers on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft

torch = pytest.importorskip("torch")
optim = pytest.importorskip("bitsandbytes.optim")


@pytest.mark.parametrize(("kind", "decay"), [("Adam8bit", 0.0), ("AdamW8bit", 0.1)])
def test_every_step_of_bitsandbytes_conforms(kind, decay):
    """From its own codes and maxima before the step, a partial block and zeros among the gradients included."""
    random = np.random.default_rng(0)
    p = torch.nn.Parameter(torch.from_numpy(random.normal(size=4199).astype(np.float32)))
    optimizer = getattr(optim, kind)([p], lr=0.01, weight_decay=decay)
    names = {"m": "state1", "v": "state2", "m_absmax": "absmax1", "v_absmax": "absmax2"}
    state = {n: np.zeros(4199 if len(n) == 1 else 17, np.uint8 if len(n) == 1 else np.float32) for n in names}
    for step in range(1, 6):
        before, grad = p.detach().numpy().copy(), random.normal(size=4199).astype(np.float32)
        grad[::3] = 0
        p.grad = torch.from_numpy(grad)
        optimizer.step()
        after = {own: optimizer.state[p][name].numpy().copy() for own, name in names.items()}
        outputs = {"next_p": p.detach().numpy()} | {f"next_{n}": a for n, a in after.items()}
        numbers = {"lr": 0.01, "step": step, "decay": decay, "variant": "bitsandbytes-cpu"}
        refpeft.assert_conforms("adam8bit.step", outputs, p=before, grad=grad, **state, **numbers)
        state = after
