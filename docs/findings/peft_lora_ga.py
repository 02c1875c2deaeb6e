"""peft: LoRA-GA multiplies B by the gradient's singular values, and its first step is not that of full fine-tuning."""

import peft
import torch
from peft.tuners.lora import LoraGAConfig

torch.manual_seed(0)
r, gradient = 4, torch.randn(48, 32)
u, s, v = torch.linalg.svd(gradient, full_matrices=False)
best = (u[:, : 2 * r] * s[: 2 * r]) @ v[: 2 * r]


def cosine(a, b):
    """Between what a first step moves the weight by and the best approximation of rank 2 r of the gradient."""
    step = b @ b.T @ gradient + gradient @ a.T @ a
    return float((step * best).sum() / step.norm() / best.norm())


linear = torch.nn.Linear(32, 48, bias=False)
linear._peft_loraga_grad = gradient
config = peft.LoraConfig(
    r=r, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(scale="unit")
)
layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
a, b = (factor["default"].weight.detach() for factor in (layer.lora_A, layer.lora_B))
print(f"peft: lengths of B's columns {[round(float(x), 2) for x in b.norm(dim=0)]}, cosine {cosine(a, b):.3f}")
print(f"orthonormal factors, as in the authors' code: cosine {cosine(v[:r], u[:, r : 2 * r]):.6f}")
