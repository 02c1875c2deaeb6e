"""peft: DeLoRA's gradients in float16 where a component of the update is small."""

import peft
import torch

torch.manual_seed(0)
for size in (1e-2, 1e-3, 0.0):
    config = peft.DeloraConfig(target_modules=["0"], r=1, delora_lambda=1)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config, autocast_adapter_dtype=False)
    layer = model.half().base_model.model[0]
    layer.delora_A["default"].data.fill_(size / 2)
    layer.delora_B["default"].data.fill_(0.5)
    layer(torch.ones(1, 4).half()).sum().backward()
    a, b = (p["default"].grad.abs().max().item() for p in (layer.delora_A, layer.delora_B))
    print(f"a row of A of length {size:g}, a column of B of 1: largest gradient to A {a:.3g}, to B {b:.3g}")
