"""peft: C3A's gradient to its input is wrong; a second adapter gets the first one's output; float64 is float32."""

import peft
import torch

torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(8, 8)).double()
model = peft.get_peft_model(base, peft.C3AConfig(target_modules=["0"], block_size=4)).double().eval()
layer, x = model.base_model.model[0], torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
whole = layer.get_base_layer().weight + layer.get_delta_weight("default")
y = layer(x)
dy = torch.randn_like(y)
(dx,) = torch.autograd.grad(y, x, dy)
step = 2**-8 * torch.eye(8, dtype=torch.float64)
moved = torch.stack([((layer(x + s) - layer(x - s)) * dy).sum(1) / 2**-7 for s in step], dim=1).detach()
print(f"by differences dx is off by {(dx - moved).abs().max().item():.1g}", end=", ")
print(f"dy times the layer's matrix by {(dy @ whole - moved).abs().max().item():.0e}")

blocks = torch.stack([torch.roll(layer.c3a_kernel["default"], s, dims=2) for s in range(4)], dim=2)
right = x @ blocks.permute(0, 2, 1, 3).reshape(8, 8).T / 8
adapted = y - layer.get_base_layer()(x)
print(f"in float64 the update is off by {((adapted - right).abs().max() / right.abs().max()).item():.0e}")

model.add_adapter("second", peft.C3AConfig(target_modules=["0"], block_size=4))
layer.set_adapter(["default", "second"])
both = layer(x)
layer.merge()
print(f"two adapters: merged and unmerged layer differ by {(layer(x) - both).abs().max().item():.2g}")
layer.unmerge()
try:
    layer(x[:0])
except RuntimeError as error:
    print("empty batch: RuntimeError:", str(error)[:13])
