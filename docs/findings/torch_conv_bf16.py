"""torch on the CPU: a bfloat16 convolution of a volume of one element, padded, reads beside its kernel."""

import torch

kernel = torch.arange(24.0).reshape(1, 3, 2, 2, 2)
volume = torch.ones(1, 3, 1, 1, 1)
print("must be:", kernel.flip(2, 3, 4).sum(1).flatten().tolist())
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    y = torch.nn.functional.conv3d(volume.to(dtype), kernel.to(dtype), padding=1)
    print(f"{dtype}: {y.flatten().tolist()}")
