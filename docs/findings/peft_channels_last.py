"""peft: adapted convolutions in torch's channels-last format, as image models are run in."""

import peft
import torch

METHODS = {
    "LoRA": peft.LoraConfig(target_modules=["0"], r=2),
    "DoRA": peft.LoraConfig(target_modules=["0"], r=2, use_dora=True),
    "BOFT": peft.BOFTConfig(target_modules=["0"], boft_block_size=4),
    "HRA": peft.HRAConfig(target_modules=["0"], r=2),
    "OFT": peft.OFTConfig(target_modules=["0"], oft_block_size=4),
}


def tried(act, *arguments):
    """Whether it works, or the name of what is raised."""
    try:
        act(*arguments)
    except RuntimeError as error:
        return type(error).__name__
    return "works"


x = torch.randn(2, 4, 8, 8)
for name, config in METHODS.items():
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3)), config).eval()
    layer, before = model.base_model.model[0], tried(model, x)
    model.to(memory_format=torch.channels_last)
    print(f"{name}: {before}; channels last, forward {tried(model, x)}, merge {tried(layer.merge)}")
