"""peft: LoHa holds its scale in float32, whatever the dtype of the model."""

import peft
import torch

torch.manual_seed(0)
config = peft.LoHaConfig(target_modules=["0"], r=3, alpha=1, init_weights=False)
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)).double(), config).double().eval()
layer = model.base_model.model[0]
a, b, c, d = (getattr(layer, f"hada_{n}")["default"] for n in ("w1_a", "w1_b", "w2_a", "w2_b"))
exact = (a @ b) * (c @ d) / 3
off = ((layer.get_delta_weight("default") - exact) / exact).abs().max().item()
print(
    f"scale 1/3 in float64: the update is off by {off:.2g} of its value; 1/3 in float32 is off by",
    1 - 3 * float(torch.tensor(1 / 3)),
)
