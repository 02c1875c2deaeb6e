"""Double quantisation of NF4's block maxima in torch."""

import functools

import torch

from refpeft_torch.autograd import implements
from refpeft_torch.nf4 import in_blocks, midpoints


@functools.cache
def dynamic_map(device):
    """The 256 codewords of the signed dynamic map, float32, ascending."""
    decades = []
    for exponent in range(-6, 1):
        ends = torch.linspace(0.1, 1, 2 ** (6 + exponent) + 1, dtype=torch.float32)
        decades.append(10.0**exponent * (ends[:-1] + ends[1:]) / 2)
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values.to(device)


@implements("nf4.offset")
def offset(absmax):
    """``torch.mean`` itself."""
    return absmax.mean()


@implements("nf4.double_quantize")
def double_quantize(absmax, offset, *, variant):
    """As NF4, on 256 codewords; or through the table of 65536 bins."""
    d = in_blocks(absmax - offset, 256)
    absmax2 = d.abs().amax(dim=1)
    bounds = midpoints(dynamic_map(absmax.device))
    if variant == "paper":
        v = d * absmax2.clamp(min=1e-38).reciprocal().unsqueeze(1)
        codes = torch.bucketize(v.clamp(-1, 1), bounds)
    else:
        v = (d * absmax2.reciprocal().unsqueeze(1)).clamp(-1, 1)
        bins = ((v + 1) * 0.5).double().mul(65535).add(0.5).float().nan_to_num(0).long()
        grid = torch.arange(65536, dtype=torch.float64, device=absmax.device) * 2 / 65535 - 1
        codes = torch.bucketize(grid, bounds.double())[bins] * (absmax2 > 0).unsqueeze(1)
    return codes.view(-1)[: absmax.numel()].to(torch.uint8), absmax2


@implements("nf4.double_dequantize")
def double_dequantize(codes, absmax2, offset):
    """One table look-up, one product, one sum."""
    d = dynamic_map(codes.device)[in_blocks(codes, 256).int()] * absmax2.unsqueeze(1)
    return (d + offset).view(-1)[: codes.numel()]
