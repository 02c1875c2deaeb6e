"""GGUF's Q4_0, Q4_1 and Q8_0 in torch."""

import torch

from refpeft_torch.autograd import implements

LEAST = torch.finfo(torch.float32).tiny


def reciprocal(d):
    """Zero for a scale that is none."""
    return torch.where(d.abs() >= LEAST, 1 / d, 0)


def pack(codes):
    """The second half of a block in the high halves of its bytes."""
    codes = codes.clamp(max=15).to(torch.uint8)
    return (codes[:, :16] | codes[:, 16:] << 4).reshape(-1)


def unpack(packed):
    """Blocks of 32 codes, float32."""
    halves = packed.view(-1, 16)
    return torch.cat([halves & 15, halves >> 4], dim=1).float()


@implements("q4_0.quantize")
def quantize_q4_0(weight):
    """``gather`` finds the extreme, ``floor`` the code."""
    blocks = weight.float().view(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    d = extreme / -8
    return pack((blocks * reciprocal(d) + 8.5).floor()), d.half().float().view(-1)


@implements("q4_0.dequantize")
def dequantize_q4_0(packed, d, *, dtype):
    """One difference, one product."""
    return ((unpack(packed) - 8) * d.unsqueeze(1)).view(-1).to(getattr(torch, dtype))


@implements("q4_1.quantize")
def quantize_q4_1(weight):
    """From the smallest element up."""
    blocks = weight.float().view(-1, 32)
    low, high = torch.aminmax(blocks, dim=1, keepdim=True)
    d = (high - low) / 15
    codes = ((blocks - low) * reciprocal(d) + 0.5).floor()
    return pack(codes), d.half().float().view(-1), low.half().float().view(-1)


@implements("q4_1.dequantize")
def dequantize_q4_1(packed, d, m, *, dtype):
    """One product, one sum."""
    return (unpack(packed) * d.unsqueeze(1) + m.unsqueeze(1)).view(-1).to(getattr(torch, dtype))


@implements("q8_0.quantize")
def quantize_q8_0(weight):
    """Halves away from zero: ``torch.round`` would take them to even."""
    blocks = weight.float().view(-1, 32)
    d = blocks.abs().amax(dim=1, keepdim=True) / 127
    v = blocks * reciprocal(d)
    size = v.abs()
    codes = size.floor() + (size - size.floor() >= 0.5)
    return torch.copysign(codes, v).to(torch.int8).view(-1), d.half().float().view(-1)


@implements("q8_0.dequantize")
def dequantize_q8_0(codes, d, *, dtype):
    """One product."""
    return (codes.view(-1, 32) * d.unsqueeze(1)).view(-1).to(getattr(torch, dtype))
