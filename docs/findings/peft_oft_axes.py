"""peft: OFT on a linear layer whose input has four axes, as images with channels last."""

import peft
import torch

torch.manual_seed(0)
config = peft.OFTConfig(target_modules=["0"], oft_block_size=4, init_weights=False)
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 5)), config).eval()
x = torch.randn(2, 3, 3, 8)
print("three axes:", tuple(model(x.flatten(0, 1)).shape))
try:
    print("four axes:", tuple(model(x).shape))
except RuntimeError as error:
    print("four axes: RuntimeError:", error)
