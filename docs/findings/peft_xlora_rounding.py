"""peft in bfloat16: X-LoRA rounds every element of x times the gate, also where x A cancels; OSF U times s."""

from types import SimpleNamespace

import peft
import torch
from peft.tuners.xlora.layer import XLoraLinearLayer

base = torch.nn.Linear(2, 1, bias=False).bfloat16()
base.weight.data.zero_()
config = peft.LoraConfig(target_modules=["0"], r=1, lora_alpha=1)
target = peft.get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False).eval().base_model.model[0]
target.lora_A["default"].weight.data = torch.tensor([[1.0, -1.0]]).bfloat16()
target.lora_B["default"].weight.data = torch.ones(1, 1).bfloat16()
how = peft.XLoraConfig(hidden_size=1, adapters={"default": ""})
layer = XLoraLinearLayer(SimpleNamespace(disabled=False), target, target.forward, 0, how)
x = torch.tensor([[[1.0, 1.0 - 2.0**-8]]]).bfloat16()
gate = torch.full((1, 1, 1, 1), 1.0 / 3.0).bfloat16()
right = (x[0, 0, 0] - x[0, 0, 1]).double() * gate.double().item()
print(f"X-LoRA: y must be {right.item():.6g}, is {layer.forward(x, scalings=gate).item():.6g}")

base = torch.nn.Linear(2, 2, bias=False)
layer = peft.get_peft_model(torch.nn.Sequential(base), peft.OSFConfig(target_modules=["0"], effective_rank=1))
layer = layer.bfloat16().base_model.model[0]
trained = layer.osf_svd_params["default"]
for name, value in {"U_low": [[1.0], [1.0]], "S_low": [1.0], "V_low": [[1.0, 0.0]]}.items():
    trained[name].data = torch.tensor(value).bfloat16()
third = torch.tensor([[1.0 / 3.0, 0.0]]).bfloat16()
layer(third).backward(torch.tensor([[1.0, 2.0**-8 - 1.0]]).bfloat16())
print(f"OSF: ds must be {third[0, 0].item() * 2.0**-8:.6g}, is {trained['S_low'].grad.item():.6g}")
