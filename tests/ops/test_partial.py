"""aLoRA and QA-LoRA against peft's own code, the search for an invocation, and LoRA+'s learning rates."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from refpeft import assert_conforms
from refpeft.errors import AttributeValueError
from refpeft.methods import LoRAFA, LoRAPlus, QALoRA
from refpeft.ops import alora, qalora


def arrays(seed=0, **shapes):
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s) for n, s in shapes.items()}


def through(variant, values, **module):
    """What peft's variant makes of the base layer's output, and the gradients by refpeft's names."""
    torch = pytest.importorskip("torch")
    variants = pytest.importorskip("peft.tuners.lora.variants")
    leaves = {n: torch.from_numpy(values[n].copy()).requires_grad_() for n in ("x", "a", "b")}

    def layer(name):
        """A bias-free linear layer whose weight is the leaf."""
        apply = torch.nn.functional.linear
        return type("Layer", (), {"weight": leaves[name], "__call__": lambda self, x: apply(x, self.weight)})()

    parts = {"lora_A": layer("a"), "lora_B": layer("b"), "lora_dropout": torch.nn.Identity(), "scaling": 0.75}
    fake = SimpleNamespace(**{n: {"default": p} for n, p in parts.items()}, training=False)
    fake.__dict__.update({n: v for n, v in module.items() if n != "alora_offsets"})
    base = torch.nn.functional.linear(leaves["x"], torch.from_numpy(values["weight"]))
    extra = {n: v for n, v in module.items() if n == "alora_offsets"}
    y = getattr(variants, variant).forward(fake, "default", leaves["x"], base, **extra)
    y.backward(torch.from_numpy(values["dy"]))
    return {"y": y.detach().numpy()} | {"d" + n: t.grad.numpy() for n, t in leaves.items()}


@pytest.mark.parametrize("offsets", [[0, 3, 6], [1, 6, 2], [6, 6, 6]])
def test_peft_alora_agrees_within_the_float64_budget(offsets):
    """Forward and gradients to x, A and B, with None for no invocation."""
    values = arrays(x=(3, 6, 5), weight=(7, 5), a=(2, 5), b=(7, 2), dy=(3, 6, 7))
    found = through("ALoraLinearVariant", values, alora_offsets=[o or None for o in offsets])
    assert_conforms("alora.linear", found, **values, offsets=np.array(offsets), scaling=0.75)


@pytest.mark.parametrize(("o", "i", "group"), [(7, 6, 3), (5, 8, 2), (1, 4, 4), (6, 5, 1)])
def test_peft_qalora_agrees_within_the_float64_budget(o, i, group):
    """In its reading; the paper's has group / l times its update."""
    values = arrays(x=(4, i), weight=(o, i), a=(2, i // group), b=(o, 2), dy=(4, o))
    module = {"in_features": i, "qalora_group_size": {"default": group}}
    found = through("QALoraLinearVariant", values, **module)
    assert_conforms("qalora.linear", found, **values, group=group, scaling=0.75, variant="peft")
    paper = 0.75 * (i // group) / group
    base = {n: values[n] for n in ("x", "weight", "a", "b")}
    same = qalora.linear(**base, group=group, scaling=paper, variant="paper")
    assert np.linalg.norm(same - found["y"]) <= 2.0**-45 * np.linalg.norm(same)


def test_the_last_invocation_counts():
    """From its start to the end of the sequence; none gives 0, and one that does not fit is none."""
    tokens = np.array([[7, 8, 1, 7, 8], [7, 8, 1, 1, 1], [1, 1, 1, 1, 7], [8, 7, 8, 7, 8]])
    assert alora.offsets(tokens, np.array([7, 8])).tolist() == [2, 5, 0, 2]
    assert alora.offsets(tokens, np.arange(6)).tolist() == [0, 0, 0, 0]


def test_peft_finds_the_same_invocations():
    """Its own search gives None where there is none."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    variants = pytest.importorskip("peft.tuners.lora.variants")
    tokens = np.random.default_rng(0).integers(0, 2, size=(40, 9))
    config = peft.LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[1, 0, 1])
    theirs = variants.calculate_alora_offsets({"default": config}, "default", torch.from_numpy(tokens))
    ours = alora.offsets(tokens, np.array([1, 0, 1]))
    assert ours.tolist() == [o or 0 for o in theirs]
    assert 0 in ours.tolist()


def test_a_group_must_divide_the_width():
    """One sentence says so."""
    with pytest.raises(AttributeValueError, match="group must be a divisor of the 30 inputs, but 16 came"):
        QALoRA().init(np.random.default_rng(0), np.zeros((4, 30)))


def test_lora_plus_gives_b_a_higher_rate():
    """The ratio times that of A; a ratio of zero is refused."""
    assert LoRAPlus(ratio=4.0).learning_rates(0.5) == {"a": 0.5, "b": 2.0}
    with pytest.raises(AttributeValueError, match="ratio must be above 0"):
        LoRAPlus(ratio=0.0)


def test_peft_gives_the_same_learning_rates():
    """Its optimiser's groups, by the names of what is in them."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 4)), peft.LoraConfig(target_modules=["0"], r=2))
    optimisers = pytest.importorskip("peft.optimizers")
    optimiser = optimisers.create_loraplus_optimizer(model, torch.optim.SGD, lr=0.5, loraplus_lr_ratio=4.0)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)].split(".")[-3]: g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert {n[-1].lower(): r for n, r in rates.items()} == LoRAPlus(ratio=4.0).learning_rates(0.5)


def test_lora_fa_trains_b_alone():
    """r o parameters, half of LoRA's for a square weight."""
    assert LoRAFA(rank=4).count(6, 6) == 4 * 6
    assert LoRAFA().trainable == ("b",)
