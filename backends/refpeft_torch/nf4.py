"""NF4 in torch."""

import functools

import torch

from refpeft_torch import blocks
from refpeft_torch.autograd import implements

# fmt: off
CODEWORDS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


@functools.cache
def codebook(device):
    """The 16 codewords, float32."""
    return torch.tensor(CODEWORDS, dtype=torch.float32, device=device)


@implements("nf4.quantize")
def quantize(weight, *, blocksize, variant):
    """``bucketize`` on the midpoints, which by default leaves a value on a boundary below it."""
    v, absmax, divisor = blocks.scaled(weight, blocksize)
    codes = torch.bucketize(v, blocks.midpoints(codebook(weight.device)))
    return blocks.pack(codes, weight.numel()), divisor if variant == "bitsandbytes-cpu" else absmax


def decode(packed, absmax, n, blocksize):
    """The n float32 weights."""
    return blocks.decode(codebook(packed.device), blocks.unpack(packed, n), absmax, blocksize)


@implements("nf4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """One table look-up and one product."""
    return decode(packed, absmax, n, blocksize).to(getattr(torch, dtype))
