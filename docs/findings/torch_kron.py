"""torch: the Kronecker product with a transposed factor."""

import torch

a, b = torch.randn(3, 2), torch.randn(2, 3)
for name, factor in (("contiguous", a.t().contiguous()), ("transposed", a.t())):
    try:
        print(f"{name}:", tuple(torch.kron(factor, b).shape))
    except RuntimeError as error:
        print(f"{name}: RuntimeError:", error)
