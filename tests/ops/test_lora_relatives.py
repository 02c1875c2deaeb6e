"""Relatives of LoRA against peft's own layers: outputs, every gradient and the merged weight, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from refpeft.errors import DomainError
from refpeft.golden import answer
from refpeft.ops import deft, gralora, lokr, lokr_both, miss_bat, unilora
from refpeft.ops._kronecker import split
from refpeft.problem import Problem

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

SHAPES = [(6, 6), (12, 4), (4, 12)]


@dataclass
class Case:
    """How one of peft's configurations is an operation here.

    Attributes
    ----------
    family : str
        Of the operations.
    config : str
        Name of peft's configuration; ``options`` are its arguments.
    names : dict of str to str
        Our parameters by peft's attribute of the layer, with what turns its tensor into ours after a slash.
    attributes : dict
        Of the operation.
    shapes : list of (o, i)
    room : float
        Normwise distance that is admitted: that of float64, where peft does not compute in float32 itself.
    """

    family: str
    config: str
    options: dict
    names: dict[str, str]
    attributes: dict = field(default_factory=dict)
    shapes: list = field(default_factory=lambda: SHAPES)
    room: float = 2.0**-40


CASES = {
    "LoKr": Case(
        "lokr",
        "LoKrConfig",
        {"r": 1, "alpha": 3, "decompose_factor": 2, "init_weights": False},
        {"lokr_w1": "w1", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"},
        {"scaling": 3.0},
        [(6, 6), (12, 4), (4, 12), (14, 10)],
    ),
    "LoKr, dense": Case(
        "lokr_dense",
        "LoKrConfig",
        {"r": 8, "alpha": 3, "init_weights": False},
        {"lokr_w1": "w1", "lokr_w2": "w2"},
        {"scaling": 3 / 8},
        [(6, 6), (12, 4), (4, 12), (7, 5), (1, 3)],
    ),
    "LoKr, both factored": Case(
        "lokr_both",
        "LoKrConfig",
        {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 3, "init_weights": False},
        {"lokr_w1_a": "w1_a", "lokr_w1_b": "w1_b", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"},
        {"scaling": 3.0},
        [(12, 12), (9, 15), (15, 9)],
    ),
    "GraLoRA": Case(
        "gralora",
        "GraloraConfig",
        {"r": 4, "alpha": 3, "gralora_k": 2, "hybrid_r": 2, "init_weights": False},
        {
            "gralora_A": "block_a",
            "gralora_B": "block_b",
            "gralora_A_general.weight": "general_a",
            "gralora_B_general.weight": "general_b",
        },
        {"scaling": 0.5},
    ),
    "RandLoRA": Case(
        "randlora",
        "RandLoraConfig",
        {"r": 3, "randlora_alpha": 6, "init_weights": False},
        {"randlora_A": "base_a", "randlora_B": "base_b", "randlora_lambda": "lambdas", "randlora_gamma": "gammas"},
        {"scaling": 2.0, "variant": "peft"},
        [(6, 6), (12, 4), (4, 12), (7, 5), (1, 3)],
    ),
    "VB-LoRA": Case(
        "vblora",
        "VBLoRAConfig",
        {"r": 3, "num_vectors": 7, "vector_length": 2, "topk": 3},
        {"vblora_logits_A": "logits_a", "vblora_logits_B": "logits_b", "vblora_vector_bank": "vectors"},
        {"chosen": 3},
    ),
    "MiSS": Case(
        "miss", "MissConfig", {"r": 3}, {"miss_block": "block"}, {}, [(6, 6), (12, 4), (4, 11), (5, 3), (1, 7)]
    ),
    "MiSS, mini": Case(
        "miss",
        "MissConfig",
        {"r": 3, "mini_r": 2, "init_weights": "mini"},
        {"miss_block": "block"},
        {},
        [(6, 6), (4, 11)],
    ),
    "MiSS, bat": Case(
        "miss_bat",
        "MissConfig",
        {"r": 2, "init_weights": "bat"},
        {"miss_block": "block"},
        {},
        [(6, 6), (12, 4), (4, 12)],
    ),
    "TinyLoRA": Case(
        "tinylora",
        "TinyLoraConfig",
        {"r": 3, "u": 5},
        {"tinylora_A": "a", "tinylora_B": "b", "tinylora_P": "projections", "tinylora_v": "v"},
        {},
        [(6, 6), (12, 4), (4, 12), (7, 5)],
    ),
    "Uni-LoRA": Case(
        "unilora",
        "UniLoraConfig",
        {"r": 3, "theta_d_length": 11},
        {
            "unilora_theta_d": "theta",
            "unilora_indices_A": "index_a",
            "unilora_indices_B": "index_b",
            "unilora_scales_A": "scale_a",
            "unilora_scales_B": "scale_b",
        },
        {},
        [(6, 6), (12, 4), (4, 12), (7, 5), (1, 3)],
    ),
    "PEANuT": Case(
        "peanut",
        "PeanutConfig",
        {"r": 3, "depth": 2, "scaling": 0.5, "init_weights": False},
        {
            "peanut_A.weight": "first",
            "peanut_encoders": "encoders",
            "peanut_decoders": "decoders",
            "peanut_B.weight": "last",
        },
        {"scaling": 0.5},
        [(6, 6), (12, 4), (4, 12), (7, 5), (1, 3)],
    ),
    "GLoRA": Case(
        "glora",
        "GloraConfig",
        {"r": 2, "config_C": "none", "config_D_E": "none"},
        {
            "glora_A.Xd": "scale_left",
            "glora_A.Xu": "scale_right",
            "glora_B.Xd": "shift_left",
            "glora_B.Xu": "shift_right",
        },
        {},
        [(6, 6), (12, 4), (4, 12), (7, 5), (1, 3)],
    ),
    "DEFT": Case(
        "deft",
        "DeftConfig",
        {"r": 3, "alpha": 2},
        {"deft_P": "subspace", "deft_R": "fill"},
        {"scaling": 2 / 3},
        [(6, 6), (12, 4), (4, 12), (7, 5)],
        room=2.0**-16,
    ),
}
RUNS = [(name, shape) for name, case in CASES.items() for shape in case.shapes]


def layer_of(case: Case, shape, seed: int):
    """peft's layer around a random linear one, in float64, every floating tensor drawn anew."""
    torch.manual_seed(seed)
    o, i = shape
    base = torch.nn.Sequential(torch.nn.Linear(i, o)).double()
    config = getattr(peft, case.config)(target_modules=["0"], **case.options)
    model = peft.get_peft_model(base, config).double().eval()
    layer = model.base_model.model[0]
    for name in case.names:
        for tensor in tensors_of(layer, name):
            if tensor.is_floating_point():
                tensor.data = torch.randn_like(tensor)
    return layer


def tensors_of(layer, name: str) -> list:
    """The adapter's tensors under peft's name: one entry of a dictionary, one of a module in it, or those of a list."""
    name, _, inner = name.partition(".")
    if name == "tinylora_v":
        return [layer.tinylora_v["default"][layer._tinylora_v_key["default"]]]
    entry = getattr(layer, name)["default"]
    if isinstance(entry, torch.nn.ModuleList):
        return [module.weight for module in entry]
    return [getattr(entry, inner) if inner else entry]


def joined(layer, name: str, tensors) -> np.ndarray:
    """One array of the tensors under a name: several are stacked."""
    arrays = [t.detach().numpy().copy() for t in tensors]
    stacked = isinstance(getattr(layer, name.partition(".")[0])["default"], torch.nn.ModuleList)
    return np.stack(arrays) if stacked else arrays[0]


def as_ours(case: Case, layer) -> dict[str, np.ndarray]:
    """The operation's parameters."""
    arrays = {ours: joined(layer, name, tensors_of(layer, name)) for name, ours in case.names.items()}
    return arrays | ({"base_a": arrays["base_a"][:, 0]} if "base_a" in arrays else {})


def problem_of(case: Case, layer, x, dy) -> Problem:
    base = layer.get_base_layer()
    arrays = {"x": x, "weight": base.weight.detach().numpy().copy(), "bias": base.bias.detach().numpy().copy()}
    return Problem.of(f"{case.family}.linear", arrays | as_ours(case, layer), case.attributes, {"dy": dy})


def close(name: str, got, golden, room: float = 2.0**-40) -> None:
    """Within the budget, or normwise where the library stores its intermediates elsewhere."""
    distance, admitted = golden.distance(got), golden.budget + room * np.max(np.abs(golden.value), initial=0.0)
    assert got.shape == golden.value.shape, name
    assert np.all(distance <= admitted), (name, float(np.max(distance)))


@pytest.mark.parametrize(("name", "shape"), RUNS, ids=lambda v: str(v).replace(" ", ""))
def test_the_layer_and_its_gradients_are_pefts(name, shape):
    """Outputs, the gradient to x and to every tensor that peft trains."""
    case = CASES[name]
    layer = layer_of(case, shape, seed=1)
    random = np.random.default_rng(2)
    x, dy = random.normal(size=(2, 3, shape[1])), random.normal(size=(2, 3, shape[0]))
    problem = problem_of(case, layer, x, dy)
    golden = answer(problem)
    inputs = torch.tensor(x, requires_grad=True)
    y = layer(inputs)
    y.backward(torch.tensor(dy))
    close("y", y.detach().numpy(), golden["y"], case.room)
    close("dx", inputs.grad.numpy(), golden["dx"], case.room)
    trained = [n for n in case.names if all(getattr(t, "requires_grad", False) for t in tensors_of(layer, n))]
    assert trained
    for peft_name in trained:
        ours = "d" + case.names[peft_name]
        gradient = joined(layer, peft_name, [t.grad for t in tensors_of(layer, peft_name)])
        close(ours, gradient, golden[ours], case.room)


@pytest.mark.parametrize(("name", "shape"), RUNS, ids=lambda v: str(v).replace(" ", ""))
def test_the_merged_weight_is_pefts(name, shape):
    """What peft's layer holds after merging."""
    case = CASES[name]
    layer = layer_of(case, shape, seed=3)
    weight = layer.get_base_layer().weight.detach().numpy().copy()
    golden = answer(Problem.of(f"{case.family}.merge", {"weight": weight} | as_ours(case, layer), case.attributes))
    layer.merge()
    close("merged", layer.get_base_layer().weight.detach().numpy(), golden["merged"], case.room)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 48, 127, 128, 250, 360, 4096])
@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 5, 16])
def test_sides_are_divided_as_in_lycoris(size, factor):
    """peft has LyCORIS' function, copied."""
    from peft.tuners.lokr.layer import factorization

    assert split(size, factor) == factorization(size, factor)


def test_indices_are_pefts():
    """A model's indices and scales come out number for number, so that checkpoints without them can be read."""
    torch.manual_seed(0)
    shapes = [(5, 3), (4, 5)]
    base = torch.nn.Sequential(*[torch.nn.Linear(i, o) for o, i in shapes]).double()
    config = peft.UniLoraConfig(target_modules=["0", "1"], r=2, theta_d_length=7, proj_seed=5)
    model = peft.get_peft_model(base, config)
    for layer, ours in zip(model.base_model.model, unilora.indices(shapes, rank=2, d=7, seed=5)):
        assert np.array_equal(layer.unilora_indices_A["default"].numpy(), ours["index_a"])
        assert np.array_equal(layer.unilora_indices_B["default"].numpy(), ours["index_b"])
        assert np.array_equal(layer.unilora_scales_A["default"].numpy(), ours["scale_a"].astype(np.float32))


def test_the_projection_preserves_distances():
    """All entries of all factors together have theta's norm (Uni-LoRA: the projection is an isometry)."""
    theta = np.random.default_rng(0).normal(size=9)
    layers = unilora.indices([(5, 3), (4, 7), (6, 6)], rank=3, d=9, seed=1)
    entries = [theta[layer["index_" + k]] * layer["scale_" + k] for layer in layers for k in "ab"]
    squares = sum(float(np.sum(e**2)) for e in entries)
    assert abs(squares - float(theta @ theta)) <= 2.0**-45 * squares


def test_kronecker_products_multiply_ranks():
    """LoKr's claim: factors of rank p and r give an update of rank p r."""
    random = np.random.default_rng(0)
    w1, a, b = random.normal(size=(3, 4)), random.normal(size=(6, 2)), random.normal(size=(2, 5))
    assert np.linalg.matrix_rank(lokr.delta(w1, a, b, scaling=1.0)) == 3 * 2
    both = lokr_both.delta(random.normal(size=(3, 1)), random.normal(size=(1, 4)), a, b, scaling=1.0)
    assert np.linalg.matrix_rank(both) == 1 * 2


def test_granular_blocks_multiply_the_rank():
    """GraLoRA's claim: k blocks reach rank k r with LoRA's number of parameters."""
    random = np.random.default_rng(0)
    k, c, r = 4, 8, 4
    a, b = random.normal(size=(k, c, r)), random.normal(size=(k, r, c))
    delta = gralora.delta(a, b, np.zeros((0, k * c)), np.zeros((k * c, 0)), scaling=1.0)
    assert np.linalg.matrix_rank(delta) == k * r
    assert a.size + b.size == gralora.count(k * c, k * c, rank=r)


def test_a_singular_block_cannot_be_unmerged():
    """W + W D + D with D = -I has forgotten W."""
    with pytest.raises(np.linalg.LinAlgError):
        miss_bat.unmerge(np.ones((2, 2)), -np.eye(2)[None])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("core", [False, True], ids=["factored", "core"])
def test_the_convolution_and_its_gradients_are_pefts(core, groups):
    """LoKr of a convolution, with and without a core, strides and dilations unlike along rows and columns."""
    torch.manual_seed(4)
    base = torch.nn.Conv2d(8, 6, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=groups)
    config = peft.LoKrConfig(
        target_modules=["0"], r=1, alpha=2, decompose_factor=2, init_weights=False, use_effective_conv2d=core
    )
    layer = peft.get_peft_model(torch.nn.Sequential(base).double(), config).double().base_model.model[0]
    names = {"lokr_w1": "w1", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"} | ({"lokr_t2": "core"} if core else {})
    parameters = {ours: tensors_of(layer, n)[0].detach().numpy().copy() for n, ours in names.items()}
    random = np.random.default_rng(5)
    x = random.normal(size=(2, 8, 5, 6))
    inputs = torch.tensor(x, requires_grad=True)
    y = layer(inputs)
    dy = random.normal(size=tuple(y.shape))
    y.backward(torch.tensor(dy))
    how = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups, "scaling": 2.0}
    arrays = {"x": x, "weight": base.weight.detach().numpy(), "bias": base.bias.detach().numpy()} | parameters
    golden = answer(Problem.of("lokr_core.conv2d" if core else "lokr.conv2d", arrays, how, {"dy": dy}))
    close("y", y.detach().numpy(), golden["y"])
    close("dx", inputs.grad.numpy(), golden["dx"])
    for name, ours in names.items():
        close("d" + ours, tensors_of(layer, name)[0].grad.numpy(), golden["d" + ours])


def test_the_bias_is_what_peft_merges():
    """GLoRA's bias: b + b d + e + W c, with c a product of factors and d and e numbers."""
    torch.manual_seed(6)
    base = torch.nn.Sequential(torch.nn.Linear(5, 4)).double()
    layer = peft.get_peft_model(base, peft.GloraConfig(target_modules=["0"], r=2)).double().base_model.model[0]
    for tensor in layer.parameters():
        tensor.data = torch.randn_like(tensor)
    linear = layer.get_base_layer()
    b, weight = linear.bias.detach().numpy().copy(), linear.weight.detach().numpy().copy()
    c, d, e = (getattr(layer, "glora_" + n)["default"]().detach().numpy() for n in "CDE")
    arrays = {"bias": b, "weight": weight, "c": c[:, 0], "d": np.full(4, d), "e": np.full(4, e)}
    golden = answer(Problem.of("glora.bias", arrays, {}))
    layer.merge()
    close("adapted", linear.bias.detach().numpy(), golden["adapted"])


def test_rank_reduction_loses_its_subspace():
    """PaRa with an orthogonal projection takes the rank of its subspace, and says so when asked to unmerge."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(5, 5))
    p = np.linalg.qr(random.normal(size=(5, 2)))[0]
    how = {"scaling": 1.0, "projection": "orthogonal", "variant": "para"}
    merged = weight + deft.delta(weight, p, np.zeros((2, 5)), **how)
    assert np.max(np.abs(p.T @ merged)) <= 2.0**-48 * np.linalg.norm(weight)
    assert np.linalg.matrix_rank(merged) == 5 - 2
    with pytest.raises(DomainError, match="nothing gives back"):
        deft.unmerge(merged, p, np.zeros((2, 5)), **how)
