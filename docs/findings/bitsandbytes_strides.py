"""bitsandbytes, CPU: block maxima and packed codes that are views with a stride."""

import bitsandbytes.functional as F
import torch


def strided(array):
    """The same values, every other element of a larger array."""
    wide = torch.full((2 * array.shape[0], *array.shape[1:]), 99).to(array.dtype)
    wide[::2] = array
    return wide[::2]


weights = torch.randn(512, generator=torch.manual_seed(0))
codes, state = F.quantize_blockwise(weights, blocksize=256)
right = F.dequantize_blockwise(codes, state)
state.absmax = strided(state.absmax)
off = (F.dequantize_blockwise(codes, state) - right).abs().max().item()
print(f"dequantize_blockwise, maxima with a stride: off by {off:.3g} of weights up to {weights.abs().max().item():.3g}")

packed, state = F.quantize_4bit(weights, quant_type="nf4")
right, maxima = F.dequantize_4bit(packed, state), state.absmax
state.absmax = strided(maxima)
off = (F.dequantize_4bit(packed, state) - right).abs().max().item()
print(f"dequantize_4bit, maxima with a stride: off by {off:.3g}")
state.absmax = maxima
off = (F.dequantize_4bit(strided(packed), state) - right).abs().max().item()
print(f"dequantize_4bit, codes with a stride: off by {off:.3g}")
