"""peft: DEFT takes the bias off the layer's result, in which it has rounded things away; and computes in float32."""

import peft
import torch

torch.manual_seed(0)
for dtype, bias in ((torch.bfloat16, 256.0), (torch.float64, 0.0)):
    base = torch.nn.Linear(1, 1).to(dtype)
    base.weight.data.fill_(0.1)
    base.bias.data.fill_(bias)
    config = peft.DeftConfig(target_modules=["0"], r=1, para=True)
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).to(dtype).eval().base_model.model[0]
    layer.deft_P["default"].data.fill_(32.0)
    x = torch.ones(1, 1, dtype=dtype)
    y = layer(x).item()
    right = (1 - 32.0**2) * base.weight.item() + bias
    print(f"{dtype}: y is {y}, must be {right}; off by {abs(y / right - 1):.0e} of it")
