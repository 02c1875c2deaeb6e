"""peft: PSOFT in bfloat16 takes A x off R A x, which it has rounded, where R is near the identity."""

import peft
import torch

base = torch.nn.Linear(1, 1, bias=False)
base.weight.data.fill_(1.0)
config = peft.PsoftConfig(target_modules=["0"], r=1, psoft_alpha=1)
model = peft.get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False).bfloat16().eval()
layer = model.base_model.model[0]
layer.psoft_R["default"].vector_a.data.fill_(1.0 + 2.0**-7)
x = torch.tensor([[1.0 / 3.0]]).bfloat16()
base.weight.data.zero_()
print(f"R - I is 2**-7, and the update must be {x.item() * 2.0**-7:.6g}; it is {layer(x).item():.6g}")
