"""Rows of an embedding table that are trained, against peft."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft.errors import AttributeValueError
from refpeft.methods import TrainableTokens
from refpeft.ops import trainable_tokens

TOKENS = (4, 0, 6)


def around(torch, base, trained):
    """peft's layer with its rows given."""
    from peft import TrainableTokensConfig, get_peft_model

    config = TrainableTokensConfig(target_modules=["0"], token_indices=list(TOKENS))
    layer = get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
    layer.trainable_tokens_delta["default"].data = torch.from_numpy(trained.copy())
    return layer


@pytest.fixture
def arrays():
    """A table, its new rows, and a batch of ids in which trained tokens come twice."""
    random = np.random.default_rng(0)
    ids = np.array([[0, 4, 1], [4, 6, 2]])
    return {"ids": ids, "weight": random.normal(size=(7, 5)), "trained": random.normal(size=(3, 5))}


def test_pefts_look_up_agrees_in_float64(arrays):
    """Its forward, its gradient to the rows, and its merged table, bit for bit."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    dy = np.random.default_rng(1).normal(size=(2, 3, 5))
    layer = around(
        torch, torch.nn.Embedding(7, 5, _weight=torch.from_numpy(arrays["weight"].copy())), arrays["trained"]
    )
    y = layer(torch.from_numpy(arrays["ids"]))
    y.backward(torch.from_numpy(dy))
    got = {"y": y.detach(), "dtrained": layer.trainable_tokens_delta["default"].grad}
    tokens = np.array(TOKENS)
    refpeft.assert_conforms("trainable_tokens.embedding", got, **arrays, tokens=tokens, dy=dy)
    layer.merge()
    merged = TrainableTokens(tokens=TOKENS).merge(arrays["weight"], {"trained": arrays["trained"], "tokens": tokens})
    np.testing.assert_array_equal(layer.base_layer.weight.detach().numpy(), merged)


def test_pefts_tied_output_layer_agrees_without_a_bias(arrays):
    """A bias is left out there: docs/findings/peft-tokens-bias.md."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    x = np.random.default_rng(2).normal(size=(2, 5))
    base = torch.nn.Linear(5, 7, bias=False, dtype=torch.float64)
    base.weight.data = torch.from_numpy(arrays["weight"].copy())
    y = around(torch, base, arrays["trained"])(torch.from_numpy(x)).detach()
    inputs = {"x": x, "weight": arrays["weight"], "trained": arrays["trained"], "tokens": np.array(TOKENS)}
    refpeft.assert_conforms("trainable_tokens.linear", y, **inputs)


def test_training_begins_at_the_base_model(arrays):
    """P is a copy of the table's rows, and as many numbers are trained as it has."""
    method, weight = TrainableTokens(tokens=TOKENS), arrays["weight"]
    start = method.init(np.random.default_rng(0), weight)
    assert start["trained"].size == method.count(5)
    np.testing.assert_array_equal(trainable_tokens.embedding(arrays["ids"], weight, **start), weight[arrays["ids"]])


def test_kept_rows_go_back_bit_for_bit(arrays):
    """What was replaced is lost from the table, not from who kept it."""
    tokens = np.array(TOKENS)
    merged = trainable_tokens.merge(arrays["weight"], arrays["trained"], tokens)
    back = trainable_tokens.unmerge(merged, arrays["weight"][tokens], tokens)
    np.testing.assert_array_equal(back, arrays["weight"])


@pytest.mark.parametrize("tokens", [(1, 1), (-1,), (True,), (1.0,)])
def test_tokens_that_are_no_set_of_ids_are_refused(tokens):
    """In one sentence."""
    with pytest.raises(AttributeValueError, match="TrainableTokens: tokens must be ids from 0 on, none of them twice"):
        TrainableTokens(tokens=tokens)
