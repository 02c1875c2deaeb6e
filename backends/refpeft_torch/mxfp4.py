"""MXFP4 and NVFP4 in torch: the scales by torch's own 8-bit dtypes, the elements by ``bucketize``."""

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.blocks import in_blocks
from refpeft_torch.precision import divided

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
UP_FROM = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Between the magnitudes. Ties go to even, so that every second boundary belongs to the upper side."""


def encode(v):
    """Codes of the nearest E2M1 numbers."""
    bounds = torch.tensor(UP_FROM, device=v.device)
    bounds[1::2] = torch.nextafter(bounds[1::2], torch.zeros_like(bounds[1::2]))
    return torch.bucketize(v.abs(), bounds) + 8 * (v < 0)


def pack(codes, n):
    """Two codes a byte, the first one in the low half."""
    low, high = codes.to(torch.uint8).view(-1)[: n + n % 2].view(-1, 2).unbind(1)
    return high << 4 | low


def decode(packed, scales, n, blocksize):
    """One table look-up and one product, in float32."""
    magnitudes = torch.tensor(MAGNITUDES, device=packed.device)
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).view(-1)[:n]
    values = torch.cat([magnitudes, -magnitudes])[in_blocks(codes, blocksize).int()]
    return (values * scales.unsqueeze(1)).view(-1)[:n]


@implements("mxfp4.quantize")
def mx_quantize(weight):
    """The exponent of the largest magnitude, by ``frexp``, less 2."""
    blocks = in_blocks(weight.float(), 32)
    absmax = blocks.abs().amax(dim=1)
    exponent = torch.frexp(absmax).exponent - 1
    scales = torch.where(absmax > 0, (exponent - 2 + 127).clamp(min=0), 0).to(torch.uint8)
    v = blocks / scales.view(torch.float8_e8m0fnu).float().unsqueeze(1)
    return pack(encode(v), weight.numel()), scales


@implements("mxfp4.dequantize")
def mx_dequantize(packed, scales, *, n, dtype):
    """The scales read as E8M0."""
    return decode(packed, scales.view(torch.float8_e8m0fnu).float(), n, 32).to(getattr(torch, dtype))


@implements("nvfp4.scale")
def nv_scale(weight):
    """The largest block gets the largest E4M3 scale."""
    return divided(weight.float().abs().max(), 6 * 448).clamp(min=2.0**-126)


@implements("nvfp4.quantize")
def nv_quantize(weight, scale):
    """The block's scale rounded by a cast to E4M3."""
    blocks = in_blocks(weight.float(), 16)
    scales = (blocks.abs().amax(dim=1) / (6 * scale)).clamp(max=448).to(torch.float8_e4m3fn)
    s = (scales.float() * scale).unsqueeze(1)
    v = torch.where(s > 0, blocks / s, 0)
    return pack(encode(v), weight.numel()), scales.view(torch.uint8)


@implements("nvfp4.dequantize")
def nv_dequantize(packed, scales, scale, *, n, dtype):
    """The scales read as E4M3, times the scale for all."""
    return decode(packed, scales.view(torch.float8_e4m3fn).float() * scale, n, 16).to(getattr(torch, dtype))
