"""NF4 in torch."""

import functools

import torch
import torch.nn.functional as F

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


def midpoints(codewords):
    """Halfway between neighbours."""
    return (codewords[:-1] + codewords[1:]) / 2


def in_blocks(flat, size):
    """A flat tensor as rows of ``size``, zeros at the end."""
    return F.pad(flat, (0, -flat.numel() % size)).view(-1, size)


@implements("nf4.quantize")
def quantize(weight, *, blocksize, variant):
    """``bucketize`` on the midpoints, which by default leaves a value on a boundary below it."""
    n = weight.numel()
    blocks = in_blocks(weight.float(), blocksize)
    absmax = blocks.abs().amax(dim=1)
    scale = absmax.clamp(min=1e-38)
    scaled = blocks * scale.reciprocal().unsqueeze(1)
    partial = slice(n // blocksize, None)
    scaled[partial] = blocks[partial] / scale[partial].unsqueeze(1)
    codes = torch.bucketize(scaled.clamp(-1, 1), midpoints(codebook(weight.device))).to(torch.uint8)
    high, low = codes.view(-1)[: n + n % 2].view(-1, 2).unbind(1)
    if variant == "bitsandbytes-cpu":
        absmax[partial] = scale[partial]
    return high << 4 | low, absmax


def decode(packed, absmax, n, blocksize):
    """The n float32 weights."""
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).view(-1)[:n]
    values = codebook(packed.device)[in_blocks(codes, blocksize).int()]
    return (values * absmax.unsqueeze(1)).view(-1)[:n]


@implements("nf4.dequantize")
def dequantize(packed, absmax, *, n, blocksize, dtype):
    """One table look-up and one product."""
    return decode(packed, absmax, n, blocksize).to(getattr(torch, dtype))
