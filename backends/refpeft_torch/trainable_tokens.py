"""Trainable tokens in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("trainable_tokens.embedding")
def embedding(ids, weight, trained, tokens):
    """A look-up in the table with its new rows, which is float32 at least: the backward adds rows up in the table's dtype."""
    table = _replaced(weight, trained, tokens)
    return F.embedding(ids, table).to(weight.dtype)


@implements("trainable_tokens.linear")
def linear(x, weight, trained, tokens, bias=None):
    """The output layer over the table with its new rows."""
    return F.linear(x, _replaced(weight, trained, tokens).to(x.dtype), bias)


@implements("trainable_tokens.merge")
def merge(weight, trained, tokens):
    """The table with its new rows."""
    return _replaced(weight, trained, tokens).to(weight.dtype)


def _replaced(weight, trained, tokens):
    """Rows emptied and filled; vectors of one token are added in float32 at least."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide).index_fill(0, tokens, 0).index_add(0, tokens, trained.to(wide))
