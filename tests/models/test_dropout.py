"""Dropout on the way into an adapter: what it drops, that gradients are of the loss under it, and who has it."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import shaken
from test_sites import KINDS, tiny

from refpeft.errors import AttributeValueError
from refpeft.methods import methods
from refpeft.models import load, shards
from refpeft.models.dropout import Dropout

IDS = np.random.default_rng(0).integers(0, 97, (3, 9))
HALF = Dropout(0.5, seed=3, step=7)


def attached(folder, method, quantise=None):
    model = load(folder, backend="cpu", quantise=quantise)
    model.attach("layers.*.attn.q,layers.*.attn.v", methods()[method](rank=2), np.random.default_rng(1))
    return shaken(model, np.random.default_rng(2))


def test_a_mask_is_of_its_seed_step_site_and_row_alone():
    """Rows of a later shard are those rows of the whole; any other number gives another mask; the share is the rate's."""
    whole = HALF.mask("a", (4, 50, 100))
    assert np.array_equal(Dropout(0.5, seed=3, step=7, first=2).mask("a", (2, 50, 100)), whole[2:])
    others = [Dropout(0.5, seed=4, step=7), Dropout(0.5, seed=3, step=8), Dropout(0.5, seed=3, step=7, first=1)]
    masks = [whole, HALF.mask("b", whole.shape), *(other.mask("a", whole.shape) for other in others)]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    for rate in (0.05, 0.5, 0.9):
        kept = Dropout(rate).mask("a", whole.shape)
        assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    assert Dropout(0.0).mask("a", whole.shape).all()


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera", "pvera"])
def test_gradients_are_those_of_the_loss_under_dropout(method, monkeypatch):
    """Equal for equal steps and other for others; along a random direction the slope is that of differences in float64."""
    numbers = {"rank": 2} | ({"norm": "full"} if method == "dora" else {})
    monkeypatch.setitem(KINDS, method, ("layers.*.attn.q,layers.*.attn.v", numbers))
    model, random, ids = tiny(method, backend="torch"), np.random.default_rng(5), IDS % 19
    loss, gradients = model.loss(ids, dropout=HALF)
    assert loss == model.loss(ids, dropout=HALF)[0] != model.loss(ids)[0]
    assert loss != model.loss(ids, dropout=Dropout(0.5, seed=3, step=8))[0]
    along = {name: random.normal(size=gradient.shape) for name, gradient in gradients.items()}
    slope, h, losses = sum(float(np.sum(model.host(g) * along[n])) for n, g in gradients.items()), 2.0**-17, []
    for move in (h, -2 * h):
        for name, array in model.trained.items():
            array += model.asarray(move * along[name])
        losses.append(model.loss(ids, dropout=HALF)[0])
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=2.0**-20)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_is_dropped_does_not_depend_on_shards_or_checkpoints(saved_folder, method, monkeypatch):
    """Checkpointing gives the same bits, and two shards the same up to the order of sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    model = attached(saved_folder, method)
    loss, gradients = model.loss(IDS, dropout=HALF)
    again, checkpointed = model.loss(IDS, dropout=HALF, checkpointing=True)
    assert again == loss
    assert all(np.array_equal(checkpointed[name], gradient) for name, gradient in gradients.items())
    monkeypatch.setattr(shards, "LEAST", 1)
    sharded, summed = model.loss(IDS, dropout=HALF)
    assert sharded == pytest.approx(loss, rel=2.0**-18)
    for name, gradient in gradients.items():
        assert np.abs(summed[name] - gradient).max() <= 2.0**-14 * np.abs(gradient).max()


def test_dropout_stands_over_a_base_in_four_bits(saved_folder):
    """QLoRA's fused layer has no dropout: over the decoded matrix it is LoRA's, with the loss of a model with those weights."""
    from refpeft.convert.quantise import Settings

    model = attached(saved_folder, "lora", Settings())
    plain = attached(saved_folder, "lora")
    for site, place in model.places.items():
        if site in plain.sites and hasattr(weight := place.weight, "decoded"):
            plain.sites[site].arrays["weight"] = weight.decoded()
    assert model.loss(IDS, dropout=HALF)[0] == plain.loss(IDS, dropout=HALF)[0] != model.loss(IDS)[0]


def test_a_rate_of_one_is_refused():
    with pytest.raises(AttributeValueError, match=r"dropout must be from 0 and below 1, but 1\.0 came\."):
        Dropout(1.0)
