"""Methods: configurations that build valid problems, count what they train, and merge and unmerge as they claim."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import fields

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft import plugins
from refpeft.cli import main
from refpeft.cli.methods import DIMS
from refpeft.errors import AttributeValueError, CapabilityError, DomainError, ShapeError
from refpeft.golden import evaluate
from refpeft.merging import merging_cost, stand_in
from refpeft.methods import METHODS, LoRA, dims_of, methods, needs_of
from refpeft.numerics.formats import as_format, store
from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_spec import page_of

ALL = methods()
WEIGHTED = [n for n, m in ALL.items() if dims_of(m) == ("o", "i")]
MERGEABLE = [n for n in WEIGHTED if not ALL[n].not_mergeable]
SHAPES = [(48, 32), (32, 48), (64, 64)]


def started(name: str, shape=(48, 32), seed=0):
    """(method, weight, parameters) at the start of training."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape) / np.sqrt(shape[1])
    chosen = ALL[name]()
    return chosen, weight, chosen.init(random, weight, **stand_in(chosen, random, weight))


def layer(chosen, weight, parameters, x) -> np.ndarray:
    """The adapted layer's output in float64, for the first of its tasks where it has several."""
    operation = find(chosen.operation)
    task = {"task": np.zeros(x.shape[:-2], np.int64)} if "task" in {a.name for a in operation.signature.inputs} else {}
    arrays = {"x": x, "weight": weight} | task | parameters
    return evaluate(Problem.of(operation, arrays, chosen.attributes()))["y"]


@pytest.mark.parametrize("name", ALL)
def test_every_method_names_a_specified_operation_and_its_own_inputs(name):
    """Its operation has a page and takes what is trained."""
    cls = ALL[name]
    assert page_of(cls.operation)
    assert set(cls.trainable) <= {a.name for a in find(cls.operation).signature.inputs}
    assert set(cls().attributes()) <= set(find(cls.operation).attributes)
    assert cls.paper


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_count_is_what_the_start_trains(name, shape):
    """The number of trainable parameters is the size of the trainable arrays."""
    chosen, _, parameters = started(name, shape)
    assert chosen.count(*shape) == sum(parameters[n].size for n in chosen.trainable)


def weighed(name: str, **options) -> Problem:
    """The layer of a method as it starts over a small weight of odd sides, or of even ones that few numbers divide."""
    shape = options.pop("shape")
    chosen, random = ALL[name](**options), np.random.default_rng(0)
    weight = random.normal(size=shape)
    parameters = chosen.init(random, weight, **stand_in(chosen, random, weight))
    operation = find(chosen.operation)
    names = {a.name for a in operation.signature.inputs}
    arrays = {"x": np.ones((1, 2, shape[1])), "task": np.zeros(1, np.int64), "weight": weight} | parameters
    return Problem.of(operation, {n: a for n, a in arrays.items() if n in names}, chosen.attributes())


@pytest.mark.parametrize("shape", [(13, 7), (6, 64), (1, 1)])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_method_starts_and_counts_where_its_layer_is_one(name, shape):
    """Over a weight that it does not fit neither ``init`` nor ``count`` gives anything, and both say the same."""
    try:
        problem = weighed(name, shape=shape)
    except AttributeValueError as refused:
        with pytest.raises(AttributeValueError) as counted:
            ALL[name]().count(*shape)
        assert str(counted.value) == str(refused)
        return
    assert ALL[name]().count(*shape) == sum(problem.inputs[n].size for n in ALL[name].trainable)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("c3a", {"block": 5}, "C3A: block must be a divisor of the 12 outputs and the 8 inputs, but 5 came."),
        ("boft", {"factors": 3}, "BOFT: block must be such that 4 of them divide the 8 inputs, but 4 came."),
        (
            "hra_gram_schmidt",
            {"rank": 8},
            "HRAGramSchmidt: rank must be at most 7, where the layer has 8 inputs, but 8 came.",
        ),
        ("miss", {"mini": 5}, "MiSS: mini must be 0 or a divisor of the 12 outputs, but 5 came."),
        ("poly", {"heads": 3}, "Poly: heads must be a divisor of the 12 outputs and the 8 inputs, but 3 came."),
        ("bdlora", {"side": "b", "blocks": 8}, "BDLoRA: blocks must be a divisor of the 12 outputs, but 8 came."),
        ("pissa", {"rank": 9}, "PiSSA: rank must be at most 8, the smaller side of the weight, but 9 came."),
        ("lora_ga", {"rank": 5}, "LoRAGA: rank must be at most half of 8, the smaller side of the weight, but 5 came."),
        ("osf", {"preserved": 8.0}, "OSF: preserved must be below the 8 triplets of the weight, but 8.0 came."),
        ("kasa", {"rank": 8}, "KaSA: rank must be below 8, the smaller side of the weight, but 8 came."),
    ],
)
def test_what_does_not_fit_a_weight_is_said(name, options, said):
    """Method, field, what the weight (12, 8) asks for, and what came."""
    with pytest.raises(AttributeValueError) as refused:
        weighed(name, shape=(12, 8), **options)
    assert str(refused.value) == said


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n].axes == 2])
def test_a_start_needs_a_weight(name):
    """A matrix with elements; and a generator, not a seed."""
    chosen = ALL[name]()
    data = dict.fromkeys(needs_of(chosen))
    for weight, came in (
        (np.ones(8), "one of shape (8,)"),
        (np.ones((0, 8)), "one of shape (0, 8)"),
        ([[1.0]], "a list"),
    ):
        with pytest.raises(ShapeError) as refused:
            chosen.init(np.random.default_rng(0), weight, **data)
        said = f"{type(chosen).__name__}: weight must be an array of 2 axes with elements, but {came} came."
        assert str(refused.value) == said
    with pytest.raises(AttributeValueError, match=r"random must be a numpy\.random\.Generator, but 0 came"):
        chosen.init(0, np.ones((64, 64)), **data)


@pytest.mark.parametrize("name", ["adamss", "kasa", "osf", "pissa", "psoft", "tinylora"])
def test_a_start_that_factorises_refuses_what_has_no_factors(name):
    """NaN in the weight is said to be there."""
    with pytest.raises(DomainError, match="weight holds NaN or infinity, which have no factorisation"):
        ALL[name]().init(np.random.default_rng(0), np.full((32, 24), np.nan))


@pytest.mark.parametrize("name", [n for n in ALL if dims_of(ALL[n])])
def test_a_count_is_of_whole_sizes(name):
    """At least 1, each of them."""
    for dim, size in itertools.product(dims_of(ALL[name]), [0, -3, 2.5, "4", None, True]):
        with pytest.raises(AttributeValueError, match=f"{dim} must be an integer of at least 1, but {size!r} came"):
            ALL[name]().count(**dict.fromkeys(dims_of(ALL[name]), 64) | {dim: size})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("compacter", {"m": 7}, "Compacter: m must be a divisor of the widths 64 and 2, but 7 came."),
        ("compacter", {"reduction": 65}, "Compacter: reduction must be at most the width of 64, but 65 came."),
        ("loreft", {"rank": 65}, "LoReFT: rank must be at most the width of 64, but 65 came."),
        ("houlsby_inv", {"inner": 33}, "HoulsbyInvertible: inner must be at most half the width of 64, but 33 came."),
    ],
)
def test_what_does_not_fit_a_width_is_said(name, options, said):
    """By the start and by the count."""
    chosen = ALL[name](**options)
    for asked in (lambda: chosen.init(np.random.default_rng(0), np.ones((64, 64))), lambda: chosen.count(64, 2)):
        with pytest.raises(AttributeValueError) as refused:
            asked()
        assert str(refused.value) == said


@pytest.mark.parametrize("name", [n for n, m in ALL.items() if m.trainable and m.axes == 2])
@pytest.mark.parametrize("shape", [(11, 10), (64, 17)])
def test_a_start_trains_something_or_says_in_the_users_words_why_not(name, shape):
    """Over weights of odd, prime and single sides some trained array has elements, or the method names its own field."""
    random, chosen = np.random.default_rng(0), ALL[name]()
    weight = random.normal(size=shape)
    try:
        parameters = chosen.init(random, weight, **stand_in(chosen, random, weight))
    except AttributeValueError as refused:
        said = re.match(rf"{type(chosen).__name__}: (\w+) must be .*, but .* came\.$", str(refused))
        assert said[1] in vars(chosen)
        return
    assert any(np.size(parameters[n]) for n in chosen.trainable)


@pytest.mark.parametrize("name", [n for n, m in ALL.items() if {"size", "tokens"} <= {f.name for f in fields(m)}])
def test_heads_that_do_not_divide_the_rows_are_said(name):
    """By what stands in attention, before anything is drawn."""
    for size in (7, 128):
        with pytest.raises(AttributeValueError, match=rf"size must be a divisor of the 64 outputs, but {size} came"):
            ALL[name](size=size).init(np.random.default_rng(0), np.ones((64, 64)))


def test_one_gate_for_a_layer_needs_no_heads():
    """As peft has it, an adaption prompt of any size stands over any weight."""
    one = ALL["adaption_prompt"](gates="layer", size=7).init(np.random.default_rng(0), np.ones((64, 64)))
    assert one["gate"].shape == (1,)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"alpha": -1.0}) for name in ("pissa", "olora", "corda", "lora_ga", "loftq")),
        ("deft", {"alpha": 0.0}),
        ("oft", {"block": 1}),
        ("trainable_tokens", {"tokens": ()}),
    ],
)
def test_an_option_with_which_nothing_could_start_is_refused_where_it_is_given(name, options):
    """A start that divides by the scaling needs one; what trains nothing is no method."""
    ((field, _),) = options.items()
    with pytest.raises(AttributeValueError, match=f": {field} must be .* but .* came"):
        ALL[name](**options)


def test_a_prefix_is_of_whole_heads():
    """Heads divide the width, and keys the heads."""
    for heads, kv_heads in ((7, 7), (8, 3)):
        with pytest.raises(ShapeError, match=f"but heads = {heads} and kv_heads = {kv_heads} came"):
            ALL["ptuning_v2"]().count(layers=2, width=64, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [n for n in WEIGHTED if ALL[n].identity])
def test_training_begins_at_the_base_model(name, shape):
    """At the start the adapted layer is the base layer, to the rounding of a few float64 units of its terms."""
    chosen, weight, parameters = started(name, shape)
    x = np.random.default_rng(1).normal(size=(5, shape[1]))
    y, terms = layer(chosen, weight, parameters, x), np.abs(x) @ np.abs(weight).T
    assert np.max(np.abs(y - x @ weight.T) / terms) <= 64 * 2.0**-53


def trained(parameters, names, seed=2) -> dict:
    """Parameters some steps away from the start."""
    random = np.random.default_rng(seed)
    return {n: a + 0.1 * random.normal(size=a.shape) if n in names else a for n, a in parameters.items()}


@pytest.mark.parametrize("name", MERGEABLE)
def test_the_merged_weight_is_the_adapted_layer(name):
    """x Wmergedᵀ + merged bias is the adapted layer's output, to float64 rounding of a few dozen units."""
    chosen, weight, parameters = started(name)
    parameters = trained(parameters, chosen.trainable)
    weight, random = parameters.pop("weight", weight), np.random.default_rng(1)
    x, bias = random.normal(size=(5, weight.shape[1])), random.normal(size=len(weight))
    takes = "bias" in {a.name for a in find(chosen.operation).signature.inputs}
    merged = chosen.merge(weight, parameters)
    y = layer(chosen, weight, parameters | ({"bias": bias} if takes else {}), x)
    alone = x @ merged.T + (chosen.merge_bias(bias, parameters) if takes else 0)
    assert np.linalg.norm(y - alone) <= 2.0**-45 * np.linalg.norm(x) * np.linalg.norm(merged)
    assert not np.array_equal(merged, weight)


@pytest.mark.parametrize("name", [n for n in MERGEABLE if not ALL[n].not_unmergeable])
def test_unmerging_gives_the_weight_back(name):
    """Up to the merge's rounding."""
    chosen, weight, parameters = started(name)
    parameters = trained(parameters, chosen.trainable)
    weight = parameters.pop("weight", weight)
    back = chosen.unmerge(chosen.merge(weight, parameters), parameters)
    assert np.linalg.norm(back - weight) <= 2.0**-40 * np.linalg.norm(weight)


@pytest.mark.parametrize("name", [n for n in MERGEABLE if not ALL[n].not_unmergeable])
def test_unmerging_is_checked_as_merging_is(name):
    """A parameter that is not there, and a weight of another shape, where the layer needs one: never a wrong weight."""
    chosen, weight, parameters = started(name)
    weight = parameters.pop("weight", weight)
    first = chosen.trainable[0]
    less = {n: a for n, a in parameters.items() if n != first}
    for wrong, given in ((weight, less), (weight[None], parameters), (weight[:5, :7], parameters)):
        for change in (chosen.merge, chosen.unmerge):
            with pytest.raises((ShapeError, AttributeValueError, DomainError), match=r"\w: .*\w"):
                change(wrong, given)


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_parameter_that_a_merge_does_not_take_is_named(name):
    """It is not dropped: a misspelt optional one would be another weight, silently."""
    chosen, weight, parameters = started(name)
    weight = parameters.pop("weight", weight)
    changes = (chosen.merge,) if chosen.not_unmergeable else (chosen.merge, chosen.unmerge)
    for change in changes:
        with pytest.raises(AttributeValueError, match=r": a merge takes the parameters \w.*, but 'scalee' came\.$"):
            change(weight, parameters | {"scalee": np.ones(3)})


@pytest.mark.parametrize("name", WEIGHTED)
def test_what_a_start_and_a_count_do_not_take_is_named(name):
    """With what they do take."""
    chosen, random = ALL[name](), np.random.default_rng(0)
    weight = random.normal(size=(64, 64))
    with pytest.raises(AttributeValueError, match=r": init takes random, weight.*, but 'inputz' came\.$"):
        chosen.init(random, weight, inputz=weight, **stand_in(chosen, random, weight))
    with pytest.raises(AttributeValueError, match=r": count takes o, i, but 'inputz' came\.$"):
        chosen.count(64, 64, inputz=3)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "c3a"])
def test_a_merge_costs_half_an_ulp_of_the_weight(name):
    """The merged layer is off by a third of a unit roundoff in norm, in every dtype: so much one rounding costs."""
    for dtype in ("float32", "bfloat16", "float16"):
        cost = merging_cost(ALL[name](), dtype)
        assert 0.1 < cost.apart / as_format(dtype).unit < 1
        assert cost.lost > cost.apart > 0
        assert (cost.residue is None) == bool(ALL[name].not_unmergeable)


def test_a_small_update_is_lost_in_part_by_a_merge_in_bfloat16():
    """A hundredth of the weight loses a tenth of itself: the smaller the update, the larger the share that rounding takes."""
    small, large = (merging_cost(ALL[n](), "bfloat16") for n in ("c3a", "lora"))
    assert small.update < 0.02 < 0.3 < large.update
    assert small.lost > 0.1 > 0.01 > large.lost


@pytest.mark.parametrize(("operation", "shown"), [("lora.merge", True), ("lora.linear", True), ("lora.scaling", False)])
def test_explain_tells_what_merging_costs(operation, shown):
    """Where an operation is a method's layer or its merge."""
    said = CliRunner().invoke(main, ["explain", operation]).output
    assert ("| lora | bf16 |" in said) == shown


def test_explain_takes_a_methods_name():
    """It is the page of the method's operation; a family's name is answered with its operations."""
    said = CliRunner().invoke(main, ["explain", "rslora"]).output
    assert said.startswith("# lora.linear\n")
    assert "| rslora | bf16 |" in said
    refused = CliRunner().invoke(main, ["explain", "adapter"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "did you mean adapter.bottleneck or adapter.fusion or adapter.sublayer?" in refused.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rslorra", "did you mean rslora or "),
        ("lora.linaer", "did you mean lora.linear or "),
        ("nosuch", "'refpeft operations' and 'refpeft methods' list them."),
    ],
)
def test_explain_knows_near_names_of_operations_and_of_methods(name, hint):
    """What is neither is said to be neither."""
    refused = CliRunner().invoke(main, ["explain", name])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"there is neither an operation nor a method {name!r}: {hint}" in refused.stderr


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n].not_mergeable])
def test_what_cannot_be_merged_says_why(name):
    """With the method's reason, in a sentence."""
    with pytest.raises(CapabilityError, match="cannot be merged: ") as refused:
        ALL[name]().merge(np.zeros((2, 2)), {})
    assert ALL[name].not_mergeable in str(refused.value)


@pytest.mark.parametrize("name", [n for n in MERGEABLE if ALL[n].not_unmergeable])
def test_what_cannot_be_unmerged_says_why(name):
    """With the method's reason, in a sentence."""
    with pytest.raises(CapabilityError, match="cannot be unmerged: ") as refused:
        ALL[name]().unmerge(np.zeros((2, 2)), {})
    assert ALL[name].not_unmergeable in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("rank", 0, "at least 1"),
        ("rank", 2.5, "an integer"),
        ("alpha", float("nan"), "a finite number"),
        ("start", "x", "kaiming"),
    ],
)
def test_a_configuration_is_validated(field, value, said):
    """One sentence names method, field, what was expected and what came."""
    with pytest.raises(AttributeValueError, match=rf"LoRA: {field} must be .*{said}.*, but {value!r} came"):
        LoRA(**{field: value})


def test_configurations_are_keyword_only_and_frozen():
    """A configuration is data."""
    with pytest.raises(TypeError):
        LoRA(8)
    with pytest.raises(AttributeError):
        LoRA().rank = 4


def test_gpt3_at_rank_four_trains_a_hundredth_of_a_percent():
    """r = 4 on Wq and Wv of 96 layers of width 12288: 18,874,368 of 175,181,291,520 parameters (LoRA, table 4)."""
    trained = 96 * 2 * LoRA(rank=4).count(12288, 12288)
    assert trained == 18_874_368
    assert f"{trained / 175_181_291_520:.4%}" == "0.0108%"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merged_inference_is_the_plain_linear_bit_for_bit(dtype):
    """Merged, LoRA is torch's own layer on a weight like the base's, and gives the adapted layer's bits where nothing rounds: the
    numbers are small integers.
    """
    torch, random, lora = pytest.importorskip("torch"), np.random.default_rng(0), LoRA(rank=2, alpha=4)
    shapes = {"x": (5, 8), "weight": (6, 8), "a": (2, 8), "b": (6, 2)}
    arrays = {n: store(random.integers(-1, 2, s).astype(np.float64), as_format(dtype)) for n, s in shapes.items()}
    backend = plugins.backend("torch")
    x, weight, a, b = (backend.asarray(array, "cpu") for array in arrays.values())
    merged = backend.asarray(lora.merge(arrays.pop("weight"), arrays), "cpu")
    assert (merged.shape, merged.dtype) == (weight.shape, weight.dtype)
    forward = backend.implementation("lora.linear").forward
    (adapted,), _ = forward(x, weight, a, b, None, None, None, **lora.attributes(), keep=1.0)
    assert torch.equal(adapted, torch.nn.functional.linear(x, merged))
    assert not torch.equal(adapted, torch.nn.functional.linear(x, weight))


def test_the_command_lists_every_method():
    """As JSON, for a given shape."""
    result = CliRunner().invoke(main, ["methods", "--json", "--dim", "o=48", "--dim", "i=32"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows.keys() == METHODS.keys()
    assert rows["lora"]["parameters"] == 8 * (48 + 32)
    assert rows["lora"]["mergeable"] == "yes"
    assert (rows["lora"]["unfit"], rows["waveft"]["parameters"]) == (None, 1024)


def test_the_command_says_which_methods_do_not_fit():
    """No number is made up for a layer that cannot be."""
    sizes = ["--dim", "o=13", "--dim", "i=7"]
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(main, ["methods", "--json", *sizes]).stdout)}
    assert rows["lora"]["parameters"] == 8 * (13 + 7)
    assert rows["c3a"]["parameters"] is None
    assert rows["c3a"]["unfit"] in CliRunner().invoke(main, ["methods", *sizes]).stdout


@pytest.mark.parametrize("text", ["o", "o=", "o=0", "o=-4", "depth=3", "o=1e3", "o=1000000001", "o=" + "9" * 5000])
def test_a_bad_size_is_refused(text):
    """Exit status 2 and one sentence."""
    result = CliRunner().invoke(main, ["methods", "--dim", text])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert repr(text) in result.stderr


def test_all_dims_have_a_size():
    """What a method's count asks for, the command can give."""
    assert {n for cls in ALL.values() for n in dims_of(cls)} <= DIMS.keys()
