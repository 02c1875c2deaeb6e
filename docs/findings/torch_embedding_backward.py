"""Prints the gradient of a table row that occurs 1000 times, each time with gradient 1: the definition gives 1000."""

import torch

often = torch.zeros(1000, dtype=torch.int64)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    table, vector = (torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in ((1, 1), (1,)))
    (torch.nn.functional.embedding(often, table).sum() + vector[often].sum()).backward()
    found = f"embedding {table.grad.item()} indexing {vector.grad.item()}"
    print(dtype, found, "sum:", torch.ones(1000, dtype=dtype).sum().item())
