"""VB-LoRA in torch."""

from refpeft_torch.autograd import implements
from refpeft_torch.factored import adapted, gathered


def _mixture(logits, vectors, chosen):
    largest, index = logits.topk(chosen, dim=-1)
    return (largest.softmax(-1).unsqueeze(-1) * gathered(vectors, index)).sum(-2)


def factors(logits_a, logits_b, vectors, chosen):
    """A and B, stretch by stretch out of the bank."""
    a, b = _mixture(logits_a, vectors, chosen), _mixture(logits_b, vectors, chosen)
    return a.flatten(1), b.transpose(1, 2).flatten(0, 1)


@implements("vblora.linear")
def linear(x, weight, logits_a, logits_b, vectors, bias=None, *, chosen):
    """The base layer, and the path through the rank beside it."""
    return adapted(x, weight, bias, *factors(logits_a, logits_b, vectors, chosen))


@implements("vblora.merge")
def merge(weight, logits_a, logits_b, vectors, *, chosen):
    """The weight with the update in it."""
    a, b = factors(logits_a, logits_b, vectors, chosen)
    return weight + b @ a
