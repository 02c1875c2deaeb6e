"""torch: gradients of a convolution in 16 bits on a CPU without instructions for them."""

import torch
from torch.nn import functional as F


def gradients(dtype, x, kernel, dy):
    """To the input and to the kernel, computed in a dtype."""
    x, kernel = (a.to(dtype, copy=True).requires_grad_() for a in (x, kernel))
    F.conv2d(x, kernel).backward(dy.to(dtype))
    return x.grad.double(), kernel.grad.double()


torch.manual_seed(0)
for dtype in (torch.bfloat16, torch.float16):
    for rows in (1, 16, 256):
        arrays = [torch.randn(s).to(dtype) for s in ((rows, 3, 6, 6), (4, 3, 3, 3), (rows, 4, 4, 4))]
        for name, got, exact in zip(("input", "kernel"), gradients(dtype, *arrays), gradients(torch.float64, *arrays)):
            off, rounded = ((a - exact).norm() / exact.norm() for a in (got, exact.to(dtype).double()))
            print(
                f"{str(dtype)[6:]}, batch {rows}, gradient to the {name}: off by {off:.1e}, rounded once {rounded:.1e}"
            )
