"""torch: the Kronecker product with a transposed factor, and a contiguous one with other strides along axes of one element."""

import torch

a, b = torch.randn(3, 2), torch.randn(2, 3)
for name, factor in (("contiguous", a.t().contiguous()), ("transposed", a.t())):
    try:
        print(f"{name}:", tuple(torch.kron(factor, b).shape))
    except RuntimeError as error:
        print(f"{name}: RuntimeError:", error)

core = torch.randn(4).as_strided((2, 2, 1, 1), (2, 1, 4, 4))
try:
    torch.kron(torch.randn(2, 3, 1, 1), core)
except RuntimeError as error:
    print(f"strides {core.stride()}, contiguous {core.is_contiguous()}: RuntimeError:", error)
