"""peft: BOFT takes the bias off the layer's result again, scales, and adds it back: in bfloat16 its gradient is lost."""

import peft
import torch

torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    base = torch.nn.Linear(4, 1).to(dtype)
    base.weight.data = torch.full((1, 4), 2.0**-6, dtype=dtype)
    base.bias.data.fill_(16.0)
    config = peft.BOFTConfig(target_modules=["0"], boft_block_size=4, bias="all")
    model = peft.get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False).eval()
    layer = model.base_model.model[0]
    layer.boft_s["default"].data.fill_(1000.0)
    x = torch.full((1, 4), 0.5, dtype=dtype)
    y = model(x)
    y.backward(torch.ones_like(y))
    print(f"{dtype}: y must be 47.25, is {y.item()}; the gradient to the bias must be 1, is {base.bias.grad.item()}")
