"""peft: LoHa with cores on a convolution trains two of its matrices along a gradient that is another's."""

import warnings

import peft
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = peft.LoHaConfig(target_modules=["0"], r=2, alpha=2, use_effective_conv2d=True, init_weights=False)
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2)), config).double()
layer, x = model.base_model.model[0], torch.randn(5, 3, 6, 6, dtype=torch.float64)
model(x).square().sum().backward()

print("largest distance of peft's gradients from central differences, of the largest gradient:")
for name in ("t1", "w1_a", "w1_b", "t2", "w2_a", "w2_b"):
    tensor = getattr(layer, f"hada_{name}")["default"]
    flat, found = tensor.data.view(-1), torch.empty(tensor.numel(), dtype=torch.float64)
    for k in range(flat.numel()):
        ends = []
        for step in (1e-6, -2e-6):
            flat[k] += step
            ends.append(model(x).square().sum().item())
        flat[k] += 1e-6
        found[k] = (ends[0] - ends[1]) / 2e-6
    off = (tensor.grad.view(-1) - found).abs().max() / found.abs().max()
    print(f"  hada_{name}: {off.item():.1g}")
