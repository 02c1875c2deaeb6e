"""peft: what FRoD makes of a base layer in 16 bits before any training."""

import peft
import torch

torch.manual_seed(0)
for width in (64, 256):
    for dtype in (torch.float32, torch.bfloat16):
        base = torch.nn.Linear(width, width, bias=False)
        exact, x = base.weight.detach().to(dtype).double(), torch.randn(64, width).to(dtype)
        model = peft.get_peft_model(
            torch.nn.Sequential(base), peft.FrodConfig(target_modules=["0"]), autocast_adapter_dtype=False
        ).to(dtype)
        wanted = x.double() @ exact.T
        got, alone = model(x).double(), (x @ exact.to(dtype).T).double()
        error, own = ((y - wanted).norm() / wanted.norm() for y in (got, alone))
        print(f"{width} inputs, {str(dtype)[6:]}: off by {error:.1e}, the base layer alone by {own:.1e}")
