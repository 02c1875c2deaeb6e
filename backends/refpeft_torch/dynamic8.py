"""Dynamic 8-bit quantisation in torch."""

import functools

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.blocks import decode, in_blocks, midpoints


@functools.cache
def dynamic_map(signed, device):
    """The 256 codewords, float32, ascending."""
    decades = []
    for exponent in range(-6, 1):
        ends = torch.linspace(0.1, 1, 2 ** ((6 if signed else 7) + exponent) + 1, dtype=torch.float32)
        decades.append(10.0**exponent * (ends[:-1] + ends[1:]) / 2)
    positive = torch.cat(decades)
    negative = [-positive] if signed else []
    return torch.cat([*negative, torch.tensor([0.0, 1.0]), positive]).sort().values.to(device)


def encode(x, blocksize, signed, variant):
    """Codes by ``bucketize``, or through the table of 65536 bins; and maxima."""
    blocks = in_blocks(x.float(), blocksize)
    absmax = blocks.abs().amax(dim=1)
    bounds = midpoints(dynamic_map(signed, x.device))
    if variant == "paper":
        v = blocks * absmax.clamp(min=1e-38).reciprocal().unsqueeze(1)
        codes = torch.bucketize(v.clamp(-1, 1), bounds)
    else:
        v = (blocks * absmax.reciprocal().unsqueeze(1)).clamp(-1, 1)
        bins = ((v + 1) * 0.5).double().mul(65535).add(0.5).float().nan_to_num(0).long()
        grid = torch.arange(65536, dtype=torch.float32, device=x.device) * 2 / 65535 - 1
        codes = torch.bucketize(grid, bounds)[bins] * (absmax > 0).unsqueeze(1)
    return codes.view(-1)[: x.numel()].to(torch.uint8), absmax


@implements("dynamic8.quantize")
def quantize(weight, *, blocksize, signed, variant):
    """``encode``."""
    return encode(weight, blocksize, signed, variant)


@implements("dynamic8.dequantize")
def dequantize(codes, absmax, *, blocksize, signed, dtype):
    """One table look-up and one product."""
    return decode(dynamic_map(signed, codes.device), codes, absmax, blocksize).to(getattr(torch, dtype))
