"""GraLoRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


def delta(block_a, block_b, general_a, general_b, scaling):
    """Block by block, and the hybrid part."""
    k, _, r = block_a.shape
    q = r // k
    blocks = [
        torch.cat([(block_a[n][:, m * q : (m + 1) * q] @ block_b[m][n * q : (n + 1) * q]).T for n in range(k)], dim=1)
        for m in range(k)
    ]
    return (torch.cat(blocks) + general_b @ general_a) * scaling


@implements("gralora.linear")
def linear(x, weight, block_a, block_b, general_a, general_b, bias=None, *, scaling):
    """Each stretch of x through its A, the shares of the rank exchanged, each output's through its B."""
    k, c, r = block_a.shape
    shares = torch.einsum("...nc,ncmq->...nmq", x.unflatten(-1, (k, c)), block_a.unflatten(-1, (k, r // k)))
    blocks = torch.einsum("...nmq,mnqd->...md", shares, block_b.unflatten(1, (k, r // k))).flatten(-2)
    general = F.linear(F.linear(x, general_a), general_b)
    return F.linear(x, weight, bias) + scaling * (blocks + general)


@implements("gralora.merge")
def merge(weight, block_a, block_b, general_a, general_b, *, scaling):
    """The weight with the update in it."""
    return weight + delta(block_a, block_b, general_a, general_b, scaling)
