"""peft: SHiRA, MiSS bat and HRA merge in every forward, and round the merged weight to the layer's dtype."""

import copy

import peft
import torch

x = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
pairs = torch.eye(2).repeat_interleave(2, 0)
for config, trained, start in (
    (peft.ShiraConfig(target_modules=["0"], r=1, random_seed=0), "shira_weight", 0.0),
    (peft.MissConfig(target_modules=["0"], r=2, init_weights="bat"), "miss_block", 0.0),
    (peft.HRAConfig(target_modules=["0"], r=2), "hra_u", pairs),
):
    base = torch.nn.Linear(4, 4, bias=False)
    base.weight.data.fill_(1.0)
    model = peft.get_peft_model(torch.nn.Sequential(base), config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if trained in name:
            parameter.data = start + 2**-9 * torch.arange(parameter.numel()).reshape(parameter.shape)
    exact = copy.deepcopy(model.bfloat16()).double()
    y, wanted = model(x.bfloat16())[0], exact(x.double())[0]
    print(f"{type(config).__name__}: in bfloat16 y is off by {(y - wanted).norm() / wanted.norm():.0%}")
