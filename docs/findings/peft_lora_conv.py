"""peft: LoRA on a convolution that is dilated, or pads otherwise than with zeros."""

import warnings

import peft
import torch

warnings.simplefilter("ignore")


def adapted(**how):
    """LoRA around a 3 x 3 convolution, its B off zero."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, **how)).double()
    model = (
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)).double().eval()
    )
    return model, torch.randn(1, 2, 8, 8, dtype=torch.float64)


model, x = adapted(dilation=2, padding=2)
try:
    model(x)
    print("dilation 2: runs")
except RuntimeError as error:
    print("dilation 2: RuntimeError:", error)

for mode in ("zeros", "reflect", "replicate", "circular"):
    model, x = adapted(padding=1, padding_mode=mode)
    y = model(x)
    off = (model.merge_and_unload()(x) - y).abs().max().item()
    print(f"padding_mode {mode}: merged and unmerged layer differ by {off:.2g}")
