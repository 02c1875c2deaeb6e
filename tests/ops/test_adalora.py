"""AdaLoRA and KaSA against peft's own layers, and AdaLoRA's budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import assert_conforms
from refpeft.errors import AttributeValueError, DomainError
from refpeft.methods import AdaLoRA, KaSA
from refpeft.ops import adalora_budget, kasa

SHAPES = [(7, 5, 3), (5, 7, 2), (6, 6, 1), (13, 3, 4), (1, 11, 2), (11, 1, 1)]
few = settings(max_examples=50, deadline=None, derandomize=True)


def arrays(o, i, rank, seed=0):
    """Inputs of adalora.linear without mask, and a cotangent."""
    random = np.random.default_rng(seed)
    shapes = {"x": (4, i), "weight": (o, i), "a": (rank, i), "e": (rank,), "b": (o, rank), "bias": (o,), "dy": (4, o)}
    return {n: random.normal(size=s) for n, s in shapes.items()}


def adapted(values, config):
    """peft's layer around a float64 linear layer with these weights."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    o, i = values["weight"].shape
    base = torch.nn.Sequential(torch.nn.Linear(i, o, dtype=torch.float64))
    base[0].weight.data, base[0].bias.data = (torch.from_numpy(values[n].copy()) for n in ("weight", "bias"))
    return peft.get_peft_model(base, config).base_model.model[0]


def results(layer, values, parameters):
    """Output and gradients by refpeft's names, the parameters set first."""
    torch = pytest.importorskip("torch")
    for name, parameter in parameters.items():
        parameter.data = torch.from_numpy(values[name].reshape(parameter.shape).copy())
    x = torch.from_numpy(values["x"].copy()).requires_grad_()
    y = layer(x)
    y.backward(torch.from_numpy(values["dy"]))
    gradients = {"d" + n: p.grad.numpy().reshape(values[n].shape) for n, p in parameters.items()}
    return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | gradients


def merged(layer):
    layer.merge()
    return layer.base_layer.weight.detach().numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_peft_adalora_agrees_within_the_float64_budget(shape):
    """Forward, gradients to x, A, e and B, merged weight."""
    peft = pytest.importorskip("peft")
    values, rank = arrays(*shape), shape[2]
    config = peft.AdaLoraConfig(target_modules=["0"], init_r=rank, lora_alpha=3, total_step=10)
    layer = adapted(values, config)
    assert str(layer.ranknum["default"].dtype) == "torch.float64"
    attributes = AdaLoRA(rank=rank, alpha=3.0, variant="peft").attributes()
    parameters = {"a": layer.lora_A["default"], "e": layer.lora_E["default"], "b": layer.lora_B["default"]}
    assert_conforms("adalora.linear", results(layer, values, parameters), **values, **attributes)
    inputs = {n: values[n] for n in ("weight", "a", "e", "b")}
    assert_conforms("adalora.merge", merged(layer), **inputs, **attributes)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[2] < min(s[:2])], ids=str)
def test_peft_kasa_agrees_within_the_float64_budget(shape):
    """On the weight that peft truncated, which is the one that `truncate` gives, to the rounding of its float32."""
    peft = pytest.importorskip("peft")
    values, rank = arrays(*shape), shape[2]
    config = peft.LoraConfig(target_modules=["0"], r=rank, lora_alpha=2 * rank, kasa_config=peft.KasaConfig())
    layer = adapted(values, config)
    truncated = layer.base_layer.weight.detach().numpy().copy()
    ours = kasa.truncate(values["weight"], rank)
    assert np.linalg.norm(truncated - ours) <= 2.0**-18 * np.linalg.norm(values["weight"])
    values["weight"] = truncated
    parameters = {
        "a": layer.lora_A["default"].weight,
        "e": layer.lora_diag["default"],
        "b": layer.lora_B["default"].weight,
    }
    assert_conforms("adalora.linear", results(layer, values, parameters), **values, scaling=2.0)
    inputs = {n: values[n] for n in ("weight", "a", "e", "b")}
    assert_conforms("adalora.merge", merged(layer), **inputs, scaling=2.0)


def test_kasa_takes_the_smallest_singular_values_out():
    """The others stay as they were, and a rank that leaves nothing is refused."""
    weight = np.random.default_rng(0).normal(size=(9, 6))
    wanted = np.linalg.svd(weight, compute_uv=False)
    left = np.linalg.svd(KaSA(rank=2).init(np.random.default_rng(1), weight)["weight"], compute_uv=False)
    np.testing.assert_allclose(left[:4], wanted[:4], rtol=2.0**-45)
    assert np.all(left[4:] <= 2.0**-45 * wanted[0])
    with pytest.raises(DomainError, match=r"below min\(o, i\) = 6, but 6 came"):
        kasa.truncate(weight, 6)


def test_kasa_regularises_as_peft_does():
    """beta times the squared singular values and gamma times the two norms."""
    torch = pytest.importorskip("torch")
    variants = pytest.importorskip("peft.tuners.lora.variants")
    peft = pytest.importorskip("peft")
    values = arrays(7, 5, 3)
    layer = adapted(values, peft.LoraConfig(target_modules=["0"], r=3, kasa_config=peft.KasaConfig()))
    parts = {"a": layer.lora_A["default"].weight, "e": layer.lora_diag["default"], "b": layer.lora_B["default"].weight}
    for name, parameter in parts.items():
        parameter.data = torch.from_numpy(values[name].copy())
    theirs = variants._kasa_layer_regularization_loss(layer, "default", 0.25, 0.5).item()
    ours = kasa.regulariser(values["a"], values["e"], values["b"], beta=0.25, gamma=0.5)
    assert abs(theirs - ours) <= 16 * np.spacing(np.float32(ours))


def scores(*ranks):
    """Random scores of one layer per rank, no two of which tie."""
    ends = np.cumsum(ranks)
    return st.integers(0, 2**32 - 1).map(lambda s: np.split(np.random.default_rng(s).random(ends[-1]), ends[:-1]))


@few
@given(
    initial=st.integers(1, 200),
    share=st.floats(0, 1),
    warmup=st.integers(0, 20),
    settle=st.integers(0, 20),
    rest=st.integers(1, 90),
)
def test_the_budget_falls_from_the_initial_to_the_final_number(initial, share, warmup, settle, rest):
    """It never rises, stays within the two, holds in the warmup, and ends at the final number."""
    final, total = int(share * initial), warmup + rest + settle
    numbers = {"initial": initial, "final": final, "total": total, "warmup": warmup, "settle": settle}
    budgets = [adalora_budget.budget(step, **numbers) for step in range(total + 1)]
    assert all(later <= earlier for earlier, later in pairwise(budgets))
    assert set(budgets[: warmup + 1]) == {initial}
    assert set(budgets[total - settle :]) == {final}


@few
@given(layers=scores(4, 2, 7), kept=st.integers(0, 13))
def test_as_many_triplets_stay_as_the_budget_allows_and_no_better_one_goes(layers, kept):
    """Over all layers together; where nothing ties, peft's reading keeps the same."""
    stay = adalora_budget.allocate(layers, kept)
    flat, mask = np.concatenate(layers), np.concatenate(stay)
    assert [m.shape for m in stay] == [s.shape for s in layers]
    assert mask.sum() == kept
    assert np.min(flat[mask], initial=np.inf) >= np.max(flat[~mask], initial=-np.inf)
    theirs = adalora_budget.allocate(layers, kept, ties="none")
    assert all(np.array_equal(a, b) for a, b in zip(stay, theirs))


def test_triplets_that_tie_at_the_border():
    """The first stay, or none, as in peft."""
    layers = [np.array([3.0, 1.0, 1.0]), np.array([1.0])]
    assert [m.tolist() for m in adalora_budget.allocate(layers, 2)] == [[True, True, False], [False]]
    assert [m.tolist() for m in adalora_budget.allocate(layers, 2, ties="none")] == [[True, False, False], [False]]


def test_peft_prunes_the_same_triplets():
    """Three steps of its own allocator, whose scores and mask are those of `importance`, `triplet_scores` and `allocate`."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    base = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 4)).double()
    config = peft.AdaLoraConfig(target_modules=["0", "1"], init_r=6, target_r=2, tinit=0, tfinal=1, total_step=5)
    model = peft.get_peft_model(base, config)
    layers = [model.base_model.model[j] for j in (0, 1)]
    random = np.random.default_rng(0)
    state = {}
    for step in (1, 2, 3):
        ours = []
        for j, layer in enumerate(layers):
            scored = {}
            for name, part in (("a", layer.lora_A), ("e", layer.lora_E), ("b", layer.lora_B)):
                p = part["default"]
                p.data = torch.from_numpy(random.normal(size=tuple(p.shape)))
                p.grad = torch.from_numpy(random.normal(size=tuple(p.shape)))
                past = state.get((j, name), (np.zeros(p.shape), np.zeros(p.shape)))
                *state[j, name], scored[name] = adalora_budget.importance(p.data.numpy().copy(), p.grad.numpy(), *past)
            ours.append(adalora_budget.triplet_scores(scored["a"], scored["e"][:, 0], scored["b"]))
        model.base_model.update_and_allocate(step)
        kept = adalora_budget.budget(step, initial=12, final=4, total=5, settle=1)
        stay = adalora_budget.allocate(ours, kept)
        for layer, mask in zip(layers, stay):
            assert ((layer.lora_E["default"] != 0).numpy()[:, 0] == mask).all()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"initial": 3, "final": 4, "total": 9}, "0 <= final <= initial"),
        ({"initial": 4, "final": 2, "total": 9, "warmup": 5, "settle": 4}, "below total"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(numbers, said):
    """In a sentence that says what was expected and what came."""
    with pytest.raises(AttributeValueError, match=said):
        adalora_budget.budget(1, **numbers)


def test_more_triplets_than_there_are_cannot_stay():
    """The same."""
    with pytest.raises(AttributeValueError, match="from 0 to 2, but 3 came"):
        adalora_budget.allocate([np.ones(2)], 3)


def test_pruning_keeps_the_others_as_they_are():
    """Zero where a triplet goes."""
    assert adalora_budget.prune(np.array([1.5, -2.0]), np.array([False, True])).tolist() == [0.0, -2.0]
