"""Optimizers beyond single steps of the kit: torch.optim's own runs, and the schedules that transformers has."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.errors import AttributeValueError
from refpeft.ops import schedule

torch = pytest.importorskip("torch")

RUNS = {
    "sgd.step": (
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        {"momentum_buffer": "buffer"},
    ),
    "adam.step": (torch.optim.Adam, {"betas": (0.9, 0.999)}, {"exp_avg": "m", "exp_avg_sq": "v"}),
    "adamw.step": (torch.optim.AdamW, {"weight_decay": 0.1}, {"exp_avg": "m", "exp_avg_sq": "v"}),
}


@pytest.mark.parametrize("operation", RUNS)
def test_every_step_of_a_run_of_torch_optim_conforms(operation):
    """From the optimizer's own state before it, with the library's class as a user calls it."""
    kind, options, names = RUNS[operation]
    random = np.random.default_rng(0)
    p = torch.nn.Parameter(torch.from_numpy(random.normal(size=(16, 8)).astype(np.float32)))
    optimizer = kind([p], lr=0.01, **options)
    attributes = {"lr": 0.01} | {{"weight_decay": "decay"}.get(n, n): v for n, v in options.items() if n != "betas"}
    state = dict.fromkeys(names.values(), np.zeros((16, 8), np.float32))
    for step in range(1, 21):
        before, p.grad = p.detach().numpy().copy(), torch.from_numpy(random.normal(size=(16, 8)).astype(np.float32))
        optimizer.step()
        after = {own: optimizer.state[p][name].numpy().copy() for name, own in names.items()}
        counted = {"step": step} if operation != "sgd.step" else {}
        outputs = {"next_p": p.detach().numpy()} | {f"next_{n}": a for n, a in after.items()}
        refpeft.assert_conforms(operation, outputs, p=before, grad=p.grad, **state, **attributes, **counted)
        state = after


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedules_are_those_of_transformers(warmup):
    """At every step, past the end too; equal, or one rounding of the cosine's argument apart."""
    optimization = pytest.importorskip("transformers.optimization")
    options = {"num_warmup_steps": warmup, "num_training_steps": 30}
    theirs = {
        schedule.constant: lambda t: optimization._get_constant_schedule_with_warmup_lr_lambda(
            t, num_warmup_steps=warmup
        ),
        schedule.linear: lambda t: optimization._get_linear_schedule_with_warmup_lr_lambda(t, **options),
        schedule.cosine: lambda t: optimization._get_cosine_schedule_with_warmup_lr_lambda(
            t, num_cycles=0.5, **options
        ),
    }
    for ours, other in theirs.items():
        total = {} if ours is schedule.constant else {"total": 30}
        for step in range(31):
            apart = abs(ours(step, warmup=warmup, **total) - other(step))
            assert apart <= 4 * np.finfo(float).eps, (ours, step)


@pytest.mark.parametrize(
    "call",
    [lambda: schedule.constant(-1), lambda: schedule.linear(1, total=0), lambda: schedule.cosine(1, total=4, warmup=4)],
)
def test_a_schedule_without_steps_is_refused(call):
    """In a sentence with the numbers."""
    with pytest.raises(AttributeValueError, match="came"):
        call()
