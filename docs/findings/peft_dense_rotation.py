"""peft: merges of rotations by blocks, where one weight is infinite."""

import warnings

import peft
import torch

METHODS = {
    "OFT": peft.OFTConfig(target_modules=["0"], oft_block_size=2),
    "BOFT": peft.BOFTConfig(target_modules=["0"], boft_block_size=2),
    "RoAd": peft.RoadConfig(target_modules=["0"], group_size=2),
}
warnings.simplefilter("ignore")
for name, config in METHODS.items():
    base = torch.nn.Linear(8, 8, bias=False)
    base.weight.data[3, 5] = torch.inf
    layer = peft.get_peft_model(torch.nn.Sequential(base), config).base_model.model[0]
    layer.merge()
    print(f"{name}, blocks of 2: {(~base.weight.isfinite()).sum()} of 64 weights are not finite after the merge")
