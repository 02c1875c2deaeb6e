"""Quantisation in blocks with any codebook, in torch."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.blocks import decode, in_blocks, midpoints


@implements("codebook.quantize")
def quantize(weight, codebook, *, blocksize):
    """``bucketize`` on the midpoints."""
    blocks = in_blocks(weight.float(), blocksize)
    absmax = blocks.abs().amax(dim=1)
    v = blocks * absmax.clamp(min=1e-38).reciprocal().unsqueeze(1)
    codes = torch.bucketize(v.clamp(-1, 1), midpoints(codebook))
    return codes.view(-1)[: weight.numel()].to(torch.uint8), absmax


@implements("codebook.dequantize")
def dequantize(codes, absmax, codebook, *, blocksize, dtype):
    """One table look-up and one product."""
    return decode(codebook, codes, absmax, blocksize).to(getattr(torch, dtype))
