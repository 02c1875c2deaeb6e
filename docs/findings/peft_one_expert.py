"""peft: LoRA on a parameter (experts, in, out) of one expert adds the update untransposed."""

import warnings

import peft
import torch


class Experts(torch.nn.Module):
    is_transposed = True  # its weights are (experts, in, out)

    def __init__(self, experts, i, o):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(experts, i, o))

    def forward(self, x):
        return x @ self.weight


warnings.simplefilter("ignore")
for experts, i, o in ((2, 3, 3), (1, 3, 3), (1, 3, 2)):
    config = peft.LoraConfig(target_parameters=["0.weight"], r=2, lora_alpha=2, init_lora_weights=False)
    layer = peft.get_peft_model(torch.nn.Sequential(Experts(experts, i, o)), config).base_model.model[0]
    a, b = (d["default"].weight.detach() for d in (layer.lora_A, layer.lora_B))
    update = b[:, ::experts] @ a[:2]  # of the first expert, (out, in)
    try:
        got = layer(torch.eye(i))[0]
        said = (
            "B A transposed" if torch.allclose(got, update.T) else "B A itself" if torch.allclose(got, update) else "?"
        )
    except (RuntimeError, ValueError) as error:
        said = f"{type(error).__name__}"
    print(f"experts {experts}, in {i}, out {o}: the first expert, whose weight is zero, computes {said}")
