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


class Int8Product(torch.autograd.Function):
    """A product of integers, scaled, that passes the gradient as one with the weight."""

    @staticmethod
    def forward(ctx, x, counted, codes, absmax, weight):
        """Integers are exact in float64."""
        ctx.save_for_backward(weight)
        scale = counted.abs().amax(dim=1, keepdim=True)
        integers = torch.round(x * (127 / scale.clamp(min=2.0**-119)))
        return (integers.double() @ codes.T.double()).float() * (scale * absmax) / 127**2

    @staticmethod
    def backward(ctx, dy):
        """As if nothing had been rounded."""
        (weight,) = ctx.saved_tensors
        return dy @ weight.float(), None, None, None, None


@implements("llm_int8.linear")
def linear(x, codes, absmax, bias=None, *, threshold=6.0, variant="paper", dtype):
    """Columns of outliers in the layer's dtype, the others in integers."""
    flat = x.reshape(-1, x.shape[-1])
    with torch.no_grad():
        weight = dequantize(codes, absmax, axis="rows", dtype=dtype)
        large = flat.abs() >= threshold
        outliers = large.any(dim=0)
    inside = flat.masked_fill(outliers, 0).float()
    counted = flat.masked_fill(large, 0).float() if variant == "bitsandbytes" else inside
    y = Int8Product.apply(inside, counted.detach(), codes, absmax, weight)
    y = y + flat.masked_fill(~outliers, 0).float() @ weight.float().T
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).reshape(*x.shape[:-1], codes.shape[0])
