"""What the block-wise quantisers in torch share."""

import torch
import torch.nn.functional as F


def in_blocks(flat, size):
    """A flat tensor as rows of ``size``, zeros at the end."""
    return F.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def midpoints(codewords):
    """Halfway between neighbours."""
    return (codewords[:-1] + codewords[1:]) / 2


def scaled(weight, blocksize):
    """Blocks over their maxima, by reciprocal in full ones and by division in the partial one; the maxima; the divisors."""
    blocks = in_blocks(weight.float(), blocksize)
    absmax = blocks.abs().amax(dim=1)
    divisor = absmax.clamp(min=1e-38)
    v = blocks * divisor.reciprocal().unsqueeze(1)
    partial = slice(weight.numel() // blocksize, None)
    v[partial] = blocks[partial] / divisor[partial].unsqueeze(1)
    return v.clamp(-1, 1), absmax, torch.cat([absmax[: partial.start], divisor[partial]])


def pack(codes, n):
    """Two codes a byte, the first one in the high half."""
    high, low = codes.to(torch.uint8).view(-1)[: n + n % 2].view(-1, 2).unbind(1)
    return high << 4 | low


def unpack(packed, n):
    """The first n codes."""
    return torch.stack([packed >> 4, packed & 15], dim=-1).view(-1)[:n]


def decode(codebook, codes, absmax, blocksize):
    """One table look-up and one product."""
    return (codebook[in_blocks(codes, blocksize).int()] * absmax.unsqueeze(1)).view(-1)[: codes.numel()]
