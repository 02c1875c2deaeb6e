"""peft: GraLoRA, BD-LoRA, Poly and Lily on a batch of no rows."""

import peft
import torch

x = torch.zeros(0, 8)
print("torch.nn.Linear:", tuple(torch.nn.Linear(8, 4)(x).shape))
blocks = peft.BdLoraConfig(target_modules_bd_a=["0"], nblocks=2)
for name, config, given in (
    ("LoRA", peft.LoraConfig(target_modules=["0"], r=2), {}),
    ("GraLoRA", peft.GraloraConfig(target_modules=["0"], r=2, gralora_k=2), {}),
    ("BD-LoRA", peft.LoraConfig(target_modules=["0"], r=2, use_bdlora=blocks), {}),
    ("Poly", peft.PolyConfig(target_modules=["0"], r=2), {"task_ids": torch.zeros(0, dtype=torch.long)}),
):
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), config).eval()
    layer = model.base_model.model[0]
    try:
        print(f"{name}:", tuple(layer(x[:, None] if given else x, **given).shape))
    except RuntimeError as error:
        print(f"{name}: RuntimeError:", error)

model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), peft.LilyConfig(target_modules=["0"], r=2))
model(x).sum().backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
print("LilyConfig: gradients of NaN:", *[name for name, g in gradients.items() if g.isnan().any()])
