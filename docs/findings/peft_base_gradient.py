"""peft: the gradient to the base weight, where somebody trains it beside the adapter."""

import peft
import torch

for config in (
    peft.LoraConfig(target_modules=["0"], r=2),
    peft.OFTConfig(target_modules=["0"], oft_block_size=4),
    peft.HRAConfig(target_modules=["0"], r=2),
    peft.ShiraConfig(target_modules=["0"], r=2),
    peft.MissConfig(target_modules=["0"], r=2, init_weights="bat"),
):
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), config)
    weight = model.base_model.model[0].base_layer.weight.requires_grad_()
    model(torch.ones(1, 8)).sum().backward()
    print(f"{type(config).__name__}: the base weight has", "no gradient" if weight.grad is None else "a gradient")
