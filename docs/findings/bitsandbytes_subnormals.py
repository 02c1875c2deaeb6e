"""bitsandbytes, CPU: dequantised bfloat16 values below the smallest normal number, and 8-bit codes of a row near it."""

import bitsandbytes.functional as F
import torch

weights = torch.linspace(-1, 1, 64).reshape(2, 32) * 2.0**-128
packed, state = F.quantize_4bit(weights, quant_type="nf4")
found = {}
for state.dtype in (torch.float32, torch.bfloat16):
    found[state.dtype] = F.dequantize_4bit(packed, state)
    print(f"{state.dtype}: the first value is {found[state.dtype][0, 0].item():g}")
print(f"the first, converted by torch, is {found[torch.float32].bfloat16()[0, 0].item():g}")

for largest in (2.0**-118, 2.0**-126):
    codes, _, _ = F.int8_vectorwise_quant(torch.tensor([[largest, -largest / 2]]))
    print(f"8-bit codes of a row with maximum {largest:g}: {codes[0].tolist()}")
