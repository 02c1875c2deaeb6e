"""Methods that take the task of each text: gradients, shards of a batch, and what is said where no task came."""

from __future__ import annotations

import numpy as np
import pytest
from test_sites import IDS, KINDS, tiny

from refpeft.errors import CapabilityError, DomainError, ShapeError
from refpeft.methods import MultitaskPromptTuning, Poly
from refpeft.models import load_encoder, shards

TASKS = np.array([1, 0])
OF_TASKS = {
    "poly": ("layers.*.attn.q,layers.1.mlp.down", {"rank": 2, "heads": 2, "skills": 3, "tasks": 2}),
    "mtl_lora": ("layers.*.attn.v", {"rank": 2, "tasks": 2, "projections": 3}),
    "multitask_prompt": ("prompt", {"tokens": 3, "tasks": 2, "rank": 2}),
}


@pytest.mark.parametrize("name", OF_TASKS)
def test_a_text_is_computed_by_its_task(name, monkeypatch):
    """Alone or in a batch; the slope is that of differences, shards add up, and checkpointing changes no bit."""
    monkeypatch.setitem(KINDS, name, OF_TASKS[name])
    model, random = tiny(name), np.random.default_rng(3)
    logits = model.logits(IDS, tasks=TASKS)
    alone = [model.logits(IDS[[row]], tasks=TASKS[[row]])[0] for row in range(2)]
    np.testing.assert_allclose(logits, alone, rtol=0, atol=2.0**-44 * np.abs(logits).max())
    assert np.abs(logits - model.logits(IDS, tasks=1 - TASKS)).max() > 2.0**-10
    loss, gradients = model.loss(IDS, tasks=TASKS)
    assert loss == pytest.approx(model.score(IDS, tasks=TASKS), rel=2.0**-45)
    again = model.loss(IDS, tasks=TASKS, checkpointing=True)[1]
    assert all(np.array_equal(again[n], g) for n, g in gradients.items())
    monkeypatch.setattr(shards, "LEAST", 1)
    monkeypatch.setattr(type(model.backend), "shards", 2)
    for n, gradient in model.loss(IDS, tasks=TASKS)[1].items():
        assert np.abs(gradient - gradients[n]).max() <= 2.0**-42 * np.abs(gradient).max()
    along = {n: random.normal(size=a.shape) for n, a in model.trained.items()}
    slope, h, losses = sum(float(np.sum(g * along[n])) for n, g in gradients.items()), 2.0**-17, []
    for move in (h, -2 * h):
        for n, array in model.trained.items():
            array += move * along[n]
        losses.append(model.score(IDS, tasks=TASKS))
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=2.0**-20)


def test_a_task_that_is_none_is_said(monkeypatch):
    """One sentence each."""
    monkeypatch.setitem(KINDS, "poly", OF_TASKS["poly"])
    model = tiny("poly")
    for tasks, error, said in (
        (None, CapabilityError, r"layers\.0\.attn\.q: poly\.linear needs the task of each text, but none came"),
        ([0], ShapeError, r"tasks are integers of shape \(2,\), but int64 of shape \(1,\) came"),
        ([0.0, 1.0], ShapeError, "but float64 of shape"),
        ([0, 2], DomainError, r"layers\.0\.attn\.q: tasks lie from 0 to 1, but 0 to 2 came"),
        ([-1, 0], DomainError, "but -1 to 0 came"),
    ):
        with pytest.raises(error, match=said):
            model.loss(IDS, tasks=tasks)


def test_an_encoder_takes_tasks(tmp_path):
    """Its hidden states are those of each text's task, and gradients come with them."""
    from small_models import save, shaken

    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    encoder = load_encoder(save(config, tmp_path / "bert", "AutoModel"), backend="torch")
    random, ids = np.random.default_rng(0), IDS
    encoder.attach("layers.*.attn.q", Poly(rank=2, tasks=2), random)
    encoder.attach("prompt", MultitaskPromptTuning(tokens=2, tasks=2), random)
    shaken(encoder, random)
    hidden, vjp = encoder.with_vjp(ids, tasks=TASKS)
    assert hidden.shape == (2, 7, 16)
    assert vjp(hidden).keys() == set(encoder.trained)
    assert np.abs(encoder.host(encoder.hidden(ids, tasks=TASKS) - hidden)).max() == 0
    assert np.abs(encoder.host(encoder.hidden(ids, tasks=1 - TASKS) - hidden)).max() > 2.0**-8
