"""peft: DoRA on a convolution with groups divides by the norms of another kernel than the one that it applies."""

import warnings

import peft
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
for groups in (1, 2):
    base = torch.nn.Conv2d(4, 4, 3, groups=groups, bias=False).double()
    config = peft.LoraConfig(target_modules=["0"], r=2, use_dora=True, init_lora_weights=False)
    model = peft.get_peft_model(torch.nn.Sequential(base), config).double().eval()
    magnitude = model.base_model.model[0].lora_magnitude_vector["default"].weight
    magnitude.data = torch.ones_like(magnitude)
    # A kernel's elements are what it makes of images that are one at a point: here (in channel and place, out channel).
    with torch.no_grad():
        kernel = model(torch.eye(4 * 9, dtype=torch.float64).reshape(36, 4, 3, 3)).reshape(36, 4)
    print(f"groups {groups}: all magnitudes are 1, the norms of the filters", kernel.norm(dim=0).tolist())
