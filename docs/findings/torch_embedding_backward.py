"""Prints the gradient of a table row that occurs 1000 times, each time with gradient 1: the definition gives 1000."""

import torch

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    table = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    torch.nn.functional.embedding(torch.zeros(1000, dtype=torch.int64), table).sum().backward()
    print(dtype, table.grad.item(), "sum:", torch.ones(1000, dtype=dtype).sum().item())
