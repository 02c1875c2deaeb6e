"""Prompts at the input against peft: initialisers, CPT's projection, the prompts of tasks; masks and labels that grow along."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.errors import AttributeValueError, DomainError
from refpeft.ops import cpt, multitask_prompt, prompt

TABLE = np.arange(12.0).reshape(4, 3)


def test_masks_and_labels_grow_with_the_prompt():
    """Virtual tokens are seen, in the mask's own dtype, and have no loss."""
    mask, labels = np.array([[1, 1, 0]]), np.array([[7, 8, 9]])
    np.testing.assert_array_equal(prompt.extend_mask(mask, 2), [[1, 1, 1, 1, 0]])
    assert prompt.extend_mask(mask.astype(bool), 2).dtype == bool
    np.testing.assert_array_equal(prompt.extend_labels(labels, 2), [[-100, -100, 7, 8, 9]])
    assert prompt.extend_labels(labels, 0).shape == labels.shape


@pytest.mark.parametrize(
    ("ids", "filled"), [([3, 1], [3, 1, 3, 1, 3]), ([2], [2] * 5), ([0, 1, 2, 3, 2, 1], [0, 1, 2, 3, 2])]
)
def test_a_text_fills_the_prompt(ids, filled):
    """Repeated, or cut."""
    np.testing.assert_array_equal(prompt.from_text(TABLE, ids, 5), TABLE[filled])


@pytest.mark.parametrize("ids", [[], [4], [-1], [0.5], [[0]]])
def test_a_text_that_is_none_is_refused(ids):
    """One sentence with the ids that exist."""
    with pytest.raises(AttributeValueError, match="from 0 to 3"):
        prompt.from_text(TABLE, ids, 2)


def test_sampled_rows_come_from_the_common_part():
    """All from the first rows of the table where only those are common."""
    drawn = prompt.sampled(np.random.default_rng(0), TABLE, 50, common=2)
    assert {tuple(row) for row in drawn} == {tuple(row) for row in TABLE[:2]}


def test_peft_projects_alike():
    """CPT's get_projection, in the float32 that peft has for it, with the radii of its own token types."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from peft.tuners.cpt.model import CPTEmbedding

    table = torch.nn.Embedding(9, 6)
    config = peft.CPTConfig(
        cpt_token_ids=[1, 2, 3, 4],
        cpt_mask=[1] * 4,
        cpt_tokens_type_mask=[1, 2, 3, 4],
        opt_projection_epsilon=0.4,
        opt_projection_format_epsilon=0.2,
        task_type="CAUSAL_LM",
    )
    config.num_virtual_tokens, config.token_dim = 4, 6
    embedding = CPTEmbedding(config, table)
    delta = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) * np.float32(0.02)
    embedding.delta_embedding.weight.data = torch.from_numpy(delta.copy())
    radii = embedding.get_epsilon().numpy()
    np.testing.assert_allclose(radii[1], cpt.radius(6, 0.4), rtol=1e-6)
    projected = cpt.project(delta.astype(np.float64), radii.astype(np.float64))
    assert np.any(projected != delta)
    np.testing.assert_allclose(embedding.get_projection().numpy(), projected, rtol=1e-6)


def test_a_ball_without_a_radius_is_refused():
    """In a sentence."""
    with pytest.raises(DomainError, match="above 0"):
        cpt.project.check({"delta": np.ones((2, 3)), "epsilon": np.array([1.0, 0.0])}, {}, "float64")


def test_peft_scales_the_prompt_of_a_task_alike():
    """MultitaskPromptEmbedding in float64: the prompt of each example, and the gradients to all three tensors."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from peft.tuners.multitask_prompt_tuning.model import MultitaskPromptEmbedding

    config = peft.MultitaskPromptTuningConfig(
        num_virtual_tokens=3,
        token_dim=5,
        num_tasks=4,
        num_ranks=2,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
    )
    embedding = MultitaskPromptEmbedding(config, torch.nn.Embedding(7, 5)).double()
    arrays = multitask_prompt.init(np.random.default_rng(0), 3, 5, tasks=4, rank=2)
    theirs = (embedding.embedding.weight, embedding.prefix_task_cols, embedding.prefix_task_rows)
    for parameter, array in zip(theirs, arrays.values(), strict=True):
        parameter.data = torch.from_numpy(array.copy())
    task = np.array([2, 0, 2])
    got = embedding(torch.arange(3).repeat(3, 1), torch.from_numpy(task))
    dy = np.random.default_rng(1).normal(size=got.shape)
    got.backward(torch.from_numpy(dy))
    nothing = np.zeros((3, 0, 5))
    np.testing.assert_allclose(got.detach().numpy(), multitask_prompt.embed(task, nothing, **arrays), rtol=1e-13)
    gradients = multitask_prompt.embed.backward(dy, task, nothing, *arrays.values())[1:]
    for parameter, gradient in zip(theirs, gradients, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-12, atol=1e-15)
