"""peft: GLoRA in bfloat16, where what it adds takes most of the base result away."""

import peft
import torch

base = torch.nn.Linear(1, 1, bias=False).bfloat16()
base.weight.data.fill_(256.0)
config = peft.GloraConfig(target_modules=["0"], r=1)
model = peft.get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False).bfloat16().eval()
layer = model.base_model.model[0]
layer.glora_B["default"].Xd.data.fill_(1.0)
layer.glora_B["default"].Xu.data.fill_(-255.0)
x = torch.ones(1, 1, dtype=torch.bfloat16)
print("the weight is", (256.0 + layer.glora_B["default"]()).item(), "and so is y; y is", layer(x).item(), end="; ")
layer.merge()
print("merged it is", layer(x).item())
