"""Trainable tokens as peft has them: rows are written into a copy of the table at every forward."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import ADAPTER, around_linear, built, called, merged


def some(shapes, attributes):
    """One token at least."""
    return "" if shapes["tokens"] != (0,) else "peft takes no adapter without a token"


def with_tokens(layer, tokens):
    """The layer with the problem's tokens."""
    layer.token_indices[ADAPTER] = tokens.tolist()
    return layer


@implements("trainable_tokens.embedding", some)
def embedding(ids, weight, trained, tokens):
    """``peft.tuners.trainable_tokens.layer.TrainableTokensLayer`` around an embedding table."""
    how = ("TrainableTokensConfig", None, (("token_indices", (0,)),))
    layer = built("Embedding", tuple(weight.shape), (), weight.dtype, *how)
    return called(with_tokens(layer, tokens), ids, weight, None, trainable_tokens_delta=trained)


@implements("trainable_tokens.linear", some)
def linear(x, weight, trained, tokens, bias=None):
    """The same around the output layer."""
    layer = around_linear(weight, bias, "TrainableTokensConfig", token_indices=(0,))
    return called(with_tokens(layer, tokens), x, weight, bias, trainable_tokens_delta=trained)


@implements("trainable_tokens.merge", some, gradients=False)
def merge(weight, trained, tokens):
    """``merge``."""
    layer = around_linear(weight, None, "TrainableTokensConfig", token_indices=(0,))
    return merged(with_tokens(layer, tokens), weight, trainable_tokens_delta=trained)
