"""Bottleneck adapters, Compacter and AdapterFusion against AdapterHub's own modules, and what their papers claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refpeft
from refpeft.methods import AdapterPlus, Compacter, Houlsby, ParallelAdapter, Pfeiffer, ScaledParallelAdapter
from refpeft.numerics.primitives import erf
from refpeft.ops import adapter, compacter
from refpeft.ops.adapter import bottleneck, sublayer, truncated_normal
from refpeft.ops.layer_norm import layer_norm

WIDTH = 12
SPELLED = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "swish", "tanh": "tanh"}


@pytest.fixture(scope="module")
def hub():
    """(torch, AdapterHub's modules, its configurations), where it is installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("adapters", reason="AdapterHub's adapters is not installed")
    import adapters
    from adapters.methods import modeling

    return torch, modeling, adapters


def shaken(torch, module, random):
    """The module in float64 with every parameter drawn anew, and its parameters by name."""
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.from_numpy(0.5 * random.normal(size=parameter.shape))
    return module, dict(module.named_parameters())


def run_torch(torch, function, inputs, cotangent):
    """Output and gradients to ``inputs`` of a torch function."""
    leaves = {n: torch.from_numpy(a.copy()).requires_grad_() for n, a in inputs.items()}
    y = function(**leaves)
    y.backward(torch.from_numpy(cotangent))
    return {"y": y.detach()} | {"d" + n: leaf.grad for n, leaf in leaves.items()}


def numbers(random, *shapes):
    return [random.normal(size=s) for s in shapes]


@pytest.mark.parametrize("activation", SPELLED)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_adapterhub_agrees_in_float64(hub, placement, activation):
    """A block as its layers run it (pre_forward, adapter, post_forward around one LayerNorm): y and the gradients to x, h and all
    parameters lie within the float64 budget.
    """
    torch, modeling, adapters = hub
    random = np.random.default_rng(0)
    config = {
        "houlsby": adapters.DoubleSeqBnConfig,
        "pfeiffer": adapters.SeqBnConfig,
        "parallel": adapters.ParBnConfig,
    }[placement](non_linearity=SPELLED[activation], reduction_factor=4, scaling=1.3)
    kind = modeling.ParallelAdapter if placement == "parallel" else modeling.Adapter
    module, p = shaken(torch, kind("a", WIDTH, WIDTH // 4, config), random)
    norm, n = shaken(torch, torch.nn.LayerNorm(WIDTH, eps=1e-3), random)
    x, hidden, dy = numbers(random, *3 * ((2, 5, WIDTH),))

    def block(x, hidden):
        read, _, residual = module.pre_forward(hidden, x, norm)
        output = module(read, residual_input=residual)[0]
        return module.post_forward(output, hidden, x, norm)

    got = run_torch(torch, block, {"x": x, "hidden": hidden}, dy)
    given = {"down": p["adapter_down.0.weight"], "down_bias": p["adapter_down.0.bias"], "up": p["adapter_up.weight"]}
    given |= {"up_bias": p["adapter_up.bias"], "weight": n["weight"], "bias": n["bias"]}
    got |= {"d" + name: parameter.grad for name, parameter in given.items()}
    arrays = {name: parameter.detach().numpy() for name, parameter in given.items()}
    attributes = {"placement": placement, "activation": activation, "scaling": 1.3, "eps": 1e-3}
    refpeft.assert_conforms("adapter.sublayer", got, x=x, hidden=hidden, **arrays, dy=dy, **attributes)


@pytest.mark.parametrize(("learned", "per"), [("learned", "layer"), ("channel", "channel")])
def test_adapterhub_agrees_on_learned_scalings(hub, learned, per):
    """One for the layer, and one for each channel as in AdapterPlus, with their gradients."""
    torch, modeling, adapters = hub
    random = np.random.default_rng(1)
    config = adapters.AdapterPlusConfig(scaling=learned, stochastic_depth=0.0, reduction_factor=4)
    module, p = shaken(torch, modeling.Adapter("a", WIDTH, WIDTH // 4, config), random)
    x, residual, dy = numbers(random, *3 * ((2, 5, WIDTH),))
    got = run_torch(
        torch, lambda x, residual: module(x, residual_input=residual)[0], {"x": x, "residual": residual}, dy
    )
    given = {"down": p["adapter_down.0.weight"], "down_bias": p["adapter_down.0.bias"], "up": p["adapter_up.weight"]}
    given |= {"up_bias": p["adapter_up.bias"], "gain": p["scaling"]}
    got |= {"d" + name: parameter.grad for name, parameter in given.items()}
    arrays = {name: parameter.detach().numpy() for name, parameter in given.items()}
    attributes = {"activation": "gelu", "per": per}
    refpeft.assert_conforms("adapter.bottleneck", got, x=x, residual=residual, **arrays, dy=dy, **attributes)


@pytest.mark.parametrize("where", ["before", "after"])
def test_adapterhub_agrees_on_norms_around_the_adapter(hub, where):
    """A norm before the adapter is nn.layer_norm of what it reads, one after it of what it gives, the residual added behind."""
    torch, modeling, adapters = hub
    random = np.random.default_rng(2)
    config = adapters.SeqBnConfig(reduction_factor=4, **{f"ln_{where}": True})
    module, p = shaken(torch, modeling.Adapter("a", WIDTH, WIDTH // 4, config), random)
    x, residual = numbers(random, *2 * ((2, 5, WIDTH),))
    y = module(torch.from_numpy(x), residual_input=torch.from_numpy(residual))[0].detach().numpy()
    arrays = {n: q.detach().numpy() for n, q in p.items()}
    first = int(where == "before")
    w, b = arrays[f"adapter_norm_{where}.weight"], arrays[f"adapter_norm_{where}.bias"]
    read = layer_norm(x, w, b) if where == "before" else x
    added = bottleneck(
        read,
        arrays[f"adapter_down.{first}.weight"],
        arrays["adapter_up.weight"],
        down_bias=arrays[f"adapter_down.{first}.bias"],
        up_bias=arrays["adapter_up.bias"],
    )
    expected = residual + (layer_norm(added, w, b) if where == "after" else added)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factored", [True, False])
def test_adapterhub_agrees_on_its_phm_layer(hub, factored):
    """Forward, and the gradients to x, rules, weights and bias."""
    torch, modeling, adapters = hub
    random = np.random.default_rng(3)
    config = adapters.CompacterConfig(shared_phm_rule=False, factorized_phm_W=factored, phm_rank=2)
    module, p = shaken(torch, modeling.PHMLayer("a", WIDTH, 8, "down", config), random)
    x, dy = numbers(random, (2, 5, WIDTH), (2, 5, 8))
    got = run_torch(torch, module, {"x": x}, dy)
    given = {"rule": p["phm_rule"], "bias": p["b"]}
    given |= {"left": p["W_left"], "right": p["W_right"]} if factored else {"weights": p["W"]}
    got |= {"d" + name: parameter.grad for name, parameter in given.items()}
    arrays = {name: parameter.detach().numpy() for name, parameter in given.items()}
    refpeft.assert_conforms("compacter.linear" if factored else "compacter.phm", got, x=x, **arrays, dy=dy)


def test_adapterhub_agrees_on_fusion(hub):
    """Its default: query, key and value, the residual behind. Its bias of the keys changes nothing."""
    torch, modeling, adapters = hub
    random = np.random.default_rng(4)
    module, p = shaken(torch, modeling.BertFusion(adapters.AdapterFusionConfig.load("dynamic"), WIDTH, 0.0), random)
    x, adapted, residual, dy = numbers(random, (2, 5, WIDTH), (2, 5, 3, WIDTH), (2, 5, WIDTH), (2, 5, WIDTH))

    def fused(x, adapted, residual):
        return module(x, adapted, adapted, residual.clone())

    got = run_torch(torch, fused, {"x": x, "adapted": adapted, "residual": residual}, dy)
    given = {
        "query": p["query.weight"],
        "query_bias": p["query.bias"],
        "key": p["key.weight"],
        "value": p["value.weight"],
    }
    got |= {"d" + name: parameter.grad for name, parameter in given.items()}
    arrays = {name: parameter.detach().numpy() for name, parameter in given.items()}
    refpeft.assert_conforms("adapter.fusion", got, x=x, adapted=adapted, residual=residual, **arrays, dy=dy)


def test_a_hand_written_block_agrees():
    """The three placements written out in plain NumPy, so that the comparison does not rest on AdapterHub being there."""
    random = np.random.default_rng(5)
    x, h, down, up, w, b = numbers(random, (4, 6), (4, 6), (3, 6), (6, 3), (6,), (6,))

    def norm(v):
        return w * (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-3) + b

    def gelu(v):
        return v * (1 + erf(v / math.sqrt(2))) / 2

    reads = {"houlsby": h, "pfeiffer": norm(x + h), "parallel": x}
    for placement, v in reads.items():
        expected = norm(x + h + 0.7 * gelu(v @ down.T) @ up.T)
        got = sublayer(x, h, down, up, w, b, placement=placement, activation="gelu", scaling=0.7, eps=1e-3)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_a_phm_layer_is_the_sum_of_its_kronecker_products():
    """``numpy.kron`` of each rule and weight."""
    rule, weights = numbers(np.random.default_rng(6), (4, 4, 4), (4, 3, 2))
    dense = sum(np.kron(a, w) for a, w in zip(rule, weights))
    np.testing.assert_allclose(compacter.expand(rule, weights), dense, rtol=1e-12, atol=1e-12)


def test_training_begins_near_the_base_model_or_at_it():
    """mam adds nothing. houlsby adds at most 4e-4 r times the sum of what it reads, as no weight exceeds 0.02."""
    v = np.random.default_rng(7).normal(size=(9, 64))
    for start, room in (("mam", 0.0), ("houlsby", 4e-4 * 16)):
        given = adapter.init(np.random.default_rng(8), 64, 64, width=16, start=start)
        added = np.abs(bottleneck(v, **given))
        assert np.all(added <= room * np.abs(v).sum(axis=-1, keepdims=True))
        assert bool(added.any()) == (start == "houlsby")


def test_a_truncated_normal_stays_within_two_deviations():
    """Its own deviation is 0.8796 of the normal's that is cut."""
    values = truncated_normal(np.random.default_rng(9), (400, 500), 0.01)
    assert np.abs(values).max() <= 0.02
    assert abs(values.std() / 0.01 - 0.8796) < 0.005


def test_counts_are_those_of_adapterhub_on_bert_base():
    """What adapters 1.3.0 counts on ``BertModel(BertConfig())``: width 768, twelve layers."""
    counted = {Houlsby: 1_789_056, Pfeiffer: 894_528, ParallelAdapter: 7_091_712, Compacter: 57_088}
    for cls, count in counted.items():
        assert cls().count(768, 12) == count
    assert ScaledParallelAdapter().count(768, 12) == 7_091_712 + 12
    assert AdapterPlus().count(768, 12) == 165_984


def test_starts_have_the_sizes_that_are_counted():
    """One adapter's arrays hold what one place of one layer counts."""
    weight = np.zeros((96, 384))
    for cls in (Houlsby, Pfeiffer, ParallelAdapter, ScaledParallelAdapter, AdapterPlus):
        chosen = cls()
        start = chosen.init(np.random.default_rng(0), weight)
        assert sum(start[n].size for n in chosen.trainable) == chosen.count(96, 1) // chosen.places
