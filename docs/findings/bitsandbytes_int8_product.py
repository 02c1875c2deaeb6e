"""bitsandbytes, CPU: what the product of 8-bit codes is multiplied by, and products over one column."""

import bitsandbytes.functional as F
import torch

product, one = torch.full((1, 1), 127 * 127, dtype=torch.int32), torch.ones(1)
y = torch.ops.bitsandbytes.int8_mm_dequant.default(product, one, one, torch.float32)
print(f"127 x 127 with scales of 1 is {y.item():.7f}, off by {y.item() - 1:.2g}")

for n, m, k in [(1, 5, 1), (4, 5, 1), (4, 5, 2), (64, 64, 64)]:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(1, 128, (rows, k), generator=random).to(torch.int8) for rows in (n, m))
    right = a.int() @ b.int().T
    wrong, of_torch = ((p != right).sum().item() for p in (F.int8_linear_matmul(a, b), torch._int_mm(a, b.t())))
    print(f"({n}, {k}) by ({m}, {k}): {wrong} of {n * m} wrong, of torch._int_mm {of_torch}")
