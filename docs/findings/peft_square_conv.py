"""peft: HRA and BOFT on a convolution take kernel, stride and padding for square, and know no dilation and no padding mode."""

import warnings

import peft
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
CONFIGS = {
    "HRA": peft.HRAConfig(target_modules=["0"], r=2),
    "BOFT": peft.BOFTConfig(target_modules=["0"], boft_block_size=2),
}
CASES = (
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1, "stride": (1, 2)},
    {"kernel_size": 3, "padding": (1, 0)},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": (3, 1)},
)
for name, config in CONFIGS.items():
    for case in CASES:
        base, x = torch.nn.Conv2d(4, 4, **case), torch.randn(1, 4, 6, 6)
        wanted = base(x)
        try:
            y = peft.get_peft_model(torch.nn.Sequential(base), config).eval()(x)
            same = y.shape == wanted.shape
            said = (
                f"off by {(y - wanted).abs().max().item():.1g}"
                if same
                else f"{tuple(y.shape)} for {tuple(wanted.shape)}"
            )
        except RuntimeError as error:
            said = f"RuntimeError: {str(error)[:40]}"
        print(f"{name}, {', '.join(f'{n} {v}' for n, v in case.items())}: at the start y is {said}")
