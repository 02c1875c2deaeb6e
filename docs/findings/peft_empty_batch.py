"""peft: GraLoRA and Lily on a batch of no rows."""

import peft
import torch

x = torch.zeros(0, 8)
print("torch.nn.Linear:", tuple(torch.nn.Linear(8, 4)(x).shape))
for config in (
    peft.LoraConfig(target_modules=["0"], r=2),
    peft.GraloraConfig(target_modules=["0"], r=2, gralora_k=2),
):
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), config).eval()
    try:
        print(f"{type(config).__name__}:", tuple(model(x).shape))
    except RuntimeError as error:
        print(f"{type(config).__name__}: RuntimeError:", error)

model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), peft.LilyConfig(target_modules=["0"], r=2))
model(x).sum().backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
print("LilyConfig: gradients of NaN:", *[name for name, g in gradients.items() if g.isnan().any()])
