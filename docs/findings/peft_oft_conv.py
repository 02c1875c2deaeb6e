"""peft: OFT on a convolution adds up the patches that overlap, so that the model changes before it is trained."""

import warnings

import peft
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = peft.OFTConfig(target_modules=["0"], r=0, oft_block_size=2, use_cayley_neumann=False)
for size, how in ((1, {}), (3, {}), (3, {"padding": 1}), (1, {"groups": 2})):
    base = torch.nn.Conv2d(4, 4, size, **how).double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    before = base(x)
    model = peft.get_peft_model(torch.nn.Sequential(base), config).double().eval()
    try:
        off = (model(x) - before).abs().max().item()
        merged = (model.merge_and_unload()(x) - before).abs().max().item()
        print(f"kernel {size}, {how}: at the start y is off by {off:.2g}, merged by {merged:.2g}")
    except RuntimeError as error:
        print(f"kernel {size}, {how}: RuntimeError: {error}")
try:
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1)), config)
    model(torch.zeros(1, 4, 2, 2))
except RuntimeError as error:
    print("an image smaller than the kernel, padded: RuntimeError:", error)
