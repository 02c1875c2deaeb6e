"""torch, CPU: float32 gelu against its own definition, x (1 + erf(x / sqrt 2)) / 2, with torch.erf."""

import torch

x = torch.linspace(-6, 6, 1_000_001)
exact = (0.5 * x.double() * (1 + torch.erf(x.double() * 0.5**0.5))).double()
unit = 2.0**-24
for name, y in (
    ("torch.nn.functional.gelu", torch.nn.functional.gelu(x)),
    ("by torch.erf", 0.5 * x * (1 + torch.erf(x * 0.5**0.5))),
):
    off = (y.double() - exact).abs() / (x.double().abs() / 2)
    worst = int(off.argmax())
    print(f"{name}: 1 + erf is off by up to {off[worst] / unit:.1f} units of 2**-24, at x = {x[worst]:.6f}")
