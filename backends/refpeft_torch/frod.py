"""FRoD in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("frod.linear")
def linear(x, u, v, diagonal, sparse, places, bias=None):
    """Into the basis, scaled and mixed there, and out of it."""
    z = x @ v
    return F.linear(z * diagonal + F.linear(z, _scattered(sparse, places, v)), u, bias)


@implements("frod.merge")
def merge(u, v, diagonal, sparse, places):
    """The three matrices multiplied."""
    return (u * diagonal + u @ _scattered(sparse, places, v)) @ v.T


def _scattered(sparse, places, like):
    """S; values that meet at a place are added in at least float32."""
    wide = sparse.to(torch.promote_types(sparse.dtype, torch.float32))
    flat = torch.zeros(like.numel(), dtype=wide.dtype, device=wide.device)
    return flat.index_put((places,), wide, accumulate=True).to(like.dtype).reshape(like.shape)
