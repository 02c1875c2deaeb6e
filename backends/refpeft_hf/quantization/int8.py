"""LLM.int8's integers, by rows: on the CPU there is no function for columns."""

import bitsandbytes.functional as F

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
