"""FP4 in torch."""

import functools

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.blocks import decode, midpoints, pack, scaled, unpack

MAGNITUDES = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
CODES = (0, 1, 6, 7, 4, 5, 2, 3)
"""Of the magnitudes."""


@functools.cache
def magnitudes(device):
    """Ascending, float32."""
    return torch.tensor(MAGNITUDES, dtype=torch.float32, device=device) / 12


@functools.cache
def codebook(device):
    """The 16 codewords by code."""
    positive = torch.zeros(8, device=device).scatter(0, torch.tensor(CODES, device=device), magnitudes(device))
    return torch.cat([positive, -positive])


@implements("fp4.quantize")
def quantize(weight, *, blocksize, variant):
    """``bucketize`` of the magnitude; where v < 0, a boundary belongs to the upper side in bitsandbytes' reading."""
    v, absmax, divisor = scaled(weight, blocksize)
    size, bounds, negative = v.abs(), midpoints(magnitudes(v.device)), v < 0
    place = torch.bucketize(size, bounds)
    if variant == "bitsandbytes-cpu":
        absmax = divisor
        place = torch.where(negative, torch.bucketize(size, bounds, right=True), place)
        sign = torch.where(place == 0, v > 0, negative)
    else:
        sign = negative
    codes = torch.tensor(CODES, device=v.device)[place] + 8 * sign
    return pack(codes, weight.numel()), absmax


@implements("fp4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """One table look-up and one product."""
    return decode(codebook(packed.device), unpack(packed, n), absmax, blocksize).to(getattr(torch, dtype))
