"""torch, CPU: the backward of layer_norm adds the gradients to its weight and bias up in the input's own dtype."""

import torch

rows = 4096
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x = torch.randn(rows, 8, generator=torch.manual_seed(0)).to(dtype)
    bias = torch.zeros(8, dtype=dtype, requires_grad=True)
    torch.nn.functional.layer_norm(x, (8,), torch.ones(8, dtype=dtype), bias).sum().backward()
    print(f"{dtype}: the gradient to the bias must be {rows}, and is {bias.grad[0].item():g}")
