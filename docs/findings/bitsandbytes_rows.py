"""bitsandbytes, CPU: 4-bit matrices whose rows end within a block, and what evaluation makes of float32."""

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

torch.manual_seed(0)
for kind in ("nf4", "fp4"):
    for shape in ((16, 96), (16, 128)):
        weight = torch.randn(shape)
        packed, state = F.quantize_4bit(weight, quant_type=kind)
        flat = F.dequantize_4bit(*F.quantize_4bit(weight.reshape(-1), quant_type=kind)).reshape(shape)
        wrong = (F.dequantize_4bit(packed, state) != flat).sum().item()
        x = torch.randn(3, shape[1])
        off = (bnb.matmul_4bit(x, packed, state) - x @ flat.t()).abs().max().item()
        print(f"{kind} {shape}: {wrong} of {weight.numel()} weights are another block's; x W^T is off by {off:.1g}")

layer = bnb.nn.Linear4bit(128, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
layer.weight = bnb.nn.Params4bit(torch.randn(32, 128), requires_grad=False, quant_type="nf4").to("cpu")
x = torch.randn(3, 128)
with torch.no_grad():
    train, evaluated = layer.train()(x), layer.eval()(x)
print(
    f"AVX512-BF16 {F.has_avx512bf16()}: training and evaluating differ by {(train - evaluated).abs().max().item():.1g}"
)

weight = torch.randn(1, 2)
packed, state = F.quantize_4bit(weight)
print(f"a matrix (1, 2) comes back as {tuple(F.dequantize_4bit(packed, state).shape)}")

bias = torch.zeros(16, requires_grad=True)
packed, state = F.quantize_4bit(torch.randn(16, 2))
try:
    bnb.matmul_4bit(torch.randn(2, requires_grad=True), packed, state, bias=bias).sum().backward()
except RuntimeError as error:
    print(f"x (2,): {str(error).splitlines()[0]}")
