"""LLM.int8's integers, by rows: on the CPU there is no function for columns."""

import bitsandbytes.functional as F
import torch

from refpeft_hf.declared import implements, only

by_rows = only("axis", "rows", "on the CPU bitsandbytes scales rows only")


@implements("llm_int8.quantize", by_rows)
def quantize(weight, *, axis):
    """``int8_vectorwise_quant`` without a threshold."""
    codes, absmax, _ = F.int8_vectorwise_quant(weight)
    return codes, absmax


@implements("llm_int8.dequantize", by_rows, only("dtype", "float32", "int8_vectorwise_dequant gives float32 only"))
def dequantize(codes, absmax, *, axis, dtype):
    """``int8_vectorwise_dequant``."""
    return F.int8_vectorwise_dequant(codes, absmax)


@implements("llm_int8.linear", only("variant", "bitsandbytes", "bitsandbytes has its own reading of the maxima only"))
def linear(x, codes, absmax, bias=None, *, threshold, variant, dtype):
    """What ``MatMul8bitLt`` calls forward and computes backward, but that it takes x to float16 first."""
    return MatMul.apply(x, codes, absmax, bias, threshold)


class MatMul(torch.autograd.Function):
    """The two calls for a weight in 8 bits, and the gradient to x by the decoded one."""

    @staticmethod
    def forward(ctx, x, codes, absmax, bias, threshold):
        """``int8_vectorwise_quant``, which changes its argument on the way, and ``int8_mixed_scaled_mm``."""
        ctx.save_for_backward(codes, absmax)
        flat = x.reshape(-1, x.shape[-1]).clone()
        rows, scales, outliers = F.int8_vectorwise_quant(flat, threshold)
        y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(flat, rows, codes, scales, absmax, outliers, bias)
        return y.reshape(*x.shape[:-1], codes.shape[0])

    @staticmethod
    def backward(ctx, dy):
        """As ``MatMul8bitLt.backward``."""
        codes, absmax = ctx.saved_tensors
        weight = codes.to(dy.dtype) * (absmax.unsqueeze(1) / 127).to(dy.dtype)
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[3] else None
        return dy @ weight, None, None, dbias, None
