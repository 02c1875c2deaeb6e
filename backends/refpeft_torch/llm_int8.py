"""LLM.int8's vector-wise quantisation in torch."""

import torch

from refpeft_torch.autograd import implements


@implements("llm_int8.quantize")
def quantize(weight, *, axis):
    """``torch.round`` takes halves to even."""
    weight = weight.float()
    absmax = weight.abs().amax(dim=1 if axis == "rows" else 0, keepdim=True)
    return torch.round(weight * (127 / absmax.clamp(min=2.0**-119))).to(torch.int8), absmax.flatten()


@implements("llm_int8.dequantize")
def dequantize(codes, absmax, *, axis, dtype):
    """The scale beside its row or column."""
    scale = absmax.unsqueeze(1 if axis == "rows" else 0)
    return (codes * scale * (1 / 127)).to(getattr(torch, dtype))
