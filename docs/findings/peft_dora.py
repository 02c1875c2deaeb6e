"""peft: DoRA on a single vector, and with a row of W + delta that is zero."""

import peft
import torch

torch.manual_seed(0)
base = torch.nn.Linear(3, 2, bias=False)
base.weight.data[0] = 0.0
model = peft.get_peft_model(torch.nn.Sequential(base), peft.LoraConfig(target_modules=["0"], r=1, use_dora=True)).eval()
x = torch.randn(3)
print("a vector of 3 gives:", tuple(torch.nn.Linear(3, 2)(x).shape), "from torch,", tuple(model(x).shape), "from DoRA")
print(
    "a zero row of W gives:", model(x[None])[0, 0].item(), "and merged:", model.merge_and_unload()[0].weight[0].tolist()
)
