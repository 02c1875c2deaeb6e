"""Several adapters as one: what each way keeps, and peft's own ``add_weighted_adapter``."""

import numpy as np
import pytest

from refpeft.errors import AttributeValueError, ShapeError
from refpeft.ops import lora_combine
from refpeft.ops.lora_combine import HOW, Adapter, combine

WEIGHTS = (0.7, -1.3, 0.4)


def adapters(ranks=(3, 3, 3), o=8, i=6, seed=0):
    """Three random ones."""
    random = np.random.default_rng(seed)
    return [Adapter(random.normal(size=(r, i)), random.normal(size=(o, r)), s) for r, s in zip(ranks, (0.5, 2.0, 1.0))]


def updates(found):
    return sum(w * adapter.update for w, adapter in zip(WEIGHTS, found))


def test_cat_is_the_weighted_sum_of_the_updates():
    """At the sum of the ranks, which may differ."""
    found = adapters((1, 2, 3))
    one = combine(found, WEIGHTS, "cat")
    assert one.a.shape == (6, 6) and one.b.shape == (8, 6) and one.scaling == 1.0
    assert np.linalg.norm(one.update - updates(found)) <= 2.0**-48 * np.linalg.norm(updates(found))


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_svd_is_the_nearest_update_of_its_rank(rank):
    """Off by the singular values that are left out, in the Frobenius norm (Eckart and Young)."""
    found = adapters()
    one, whole = combine(found, WEIGHTS, "svd", rank=rank), updates(found)
    left_out = np.linalg.svd(whole, compute_uv=False)[rank:]
    apart = np.linalg.norm(one.update - whole) - np.linalg.norm(left_out)
    assert abs(apart) <= 2.0**-46 * np.linalg.norm(whole)
    assert np.linalg.matrix_rank(one.update) <= rank


def test_linear_has_cross_terms():
    """With one adapter it is that adapter's update; with several it is not the sum of theirs."""
    found = adapters()
    alone = combine(found[1:2], WEIGHTS[1:2], "linear").update
    assert np.linalg.norm(alone - WEIGHTS[1] * found[1].update) <= 2.0**-48 * np.linalg.norm(alone)
    assert np.linalg.norm(combine(found, WEIGHTS, "linear").update - updates(found)) > 0.1 * np.linalg.norm(alone)


def test_ties_takes_the_elected_sign_alone():
    """A worked example of trim, elect and merge: of 4 elements 3 stay; the vote, and who of the voters counts."""
    tensors = np.array([[4.0, -1.0, 0.5, 3.0], [-1.0, -2.0, 0.25, -3.0], [2.0, 5.0, -4.0, 0.0]])
    cut = lora_combine.pruned(tensors, 0.75)
    assert cut.tolist() == [[4, -1, 0, 3], [-1, -2, 0, -3], [2, 5, -4, 0]]
    by_total = lora_combine.elected(cut, np.ones(3), "total")
    assert by_total.tolist() == [3.0, 5.0, -4.0, 3.0]
    by_count = lora_combine.elected(cut, np.ones(3), "frequency")
    assert by_count.tolist() == [3.0, -1.5, -4.0, 3.0]


def test_of_equal_magnitudes_the_first_stay():
    """What torch leaves open."""
    assert lora_combine.pruned(np.array([[1.0, -1.0, 1.0, -1.0]]), 0.5).tolist() == [[1, -1, 0, 0]]


def test_thinning_keeps_the_mean():
    """Every element's mean over many draws is within five standard errors of it."""
    random, tensor = np.random.default_rng(0), np.array([[1.0, -2.0, 3.0]])
    draws = np.stack([lora_combine.thinned(tensor, 0.25, random) for _ in range(4000)])
    assert np.all(np.abs(draws.mean(axis=0) - tensor) <= 5 * draws.std(axis=0) / np.sqrt(4000))


@pytest.mark.parametrize("how", [h for h in HOW if not h.startswith("dare")])
@pytest.mark.parametrize("elect", ["total", "frequency"])
def test_a_combination_is_pefts(how, elect):
    """The update of peft's own ``add_weighted_adapter``, whose weights go through float32, to a few of its units."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    weights = (0.5, -2.0, 1.0)
    found = adapters()
    base = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=False)).double()
    configs = [peft.LoraConfig(r=3, lora_alpha=3 * adapter.scaling, target_modules=["0"]) for adapter in found]
    model = peft.get_peft_model(base, configs[0], adapter_name="0")
    for name in ("1", "2"):
        model.add_adapter(name, configs[int(name)])
    layer = model.base_model.model[0].double()
    for j, adapter in enumerate(found):
        layer.lora_A[str(j)].weight.data = torch.from_numpy(adapter.a.copy())
        layer.lora_B[str(j)].weight.data = torch.from_numpy(adapter.b.copy())
    options = {"svd_rank": 4} if how.endswith("svd") else {}
    names = ["0", "1", "2"]
    model.add_weighted_adapter(names, list(weights), "all", how, density=0.5, majority_sign_method=elect, **options)
    theirs = layer.get_delta_weight("all").detach().numpy()
    ours = combine(found, weights, how, rank=4 if options else None, density=0.5, elect=elect).update
    assert np.linalg.norm(ours - theirs) <= 2.0**-20 * np.linalg.norm(ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"how": "mean"}, "how must be one of cat, svd, linear"),
        ({"weights": (1.0,)}, "1 weights and 3 adapters came"),
        ({"weights": (1.0, float("nan"), 1.0)}, "weights must be finite"),
        ({"how": "ties", "density": 0.0}, "density must be above 0"),
        ({"how": "ties", "elect": "most"}, "elect must be 'total' or 'frequency'"),
        ({"how": "dare_ties"}, "needs random="),
        ({"how": "svd", "rank": 2.5}, "rank must be an integer from 1 to 6"),
        ({"how": "svd", "rank": 7}, "rank must be an integer from 1 to 6"),
    ],
)
def test_an_option_outside_its_domain_is_refused(change, said):
    """In one sentence."""
    options = {"weights": WEIGHTS, "how": "cat"} | change
    with pytest.raises(AttributeValueError, match=said):
        combine(adapters(), **options)


def test_adapters_that_do_not_fit_are_refused():
    """Of other layers, or of several ranks where factors are added up."""
    with pytest.raises(ShapeError, match=r"needs adapters of one rank, but theirs are 1, 2, 3"):
        combine(adapters((1, 2, 3)), WEIGHTS, "linear")
    with pytest.raises(ShapeError, match="must be of one layer"):
        combine([*adapters()[:2], *adapters(i=5)[:1]], WEIGHTS)
