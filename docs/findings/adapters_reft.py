"""adapters: ReFT raises in every dtype but float32, and puts what it made of short sequences in wrong places."""

import logging

import adapters
import torch
from adapters.context import ForwardContext
from adapters.methods.reft import ReftModule

logging.disable(logging.WARNING)
torch.manual_seed(0)
for config in (adapters.LoReftConfig(), adapters.NoReftConfig(), adapters.DiReftConfig()):
    for dtype in (torch.float64, torch.bfloat16):
        try:
            reft = ReftModule(4, config).to(dtype).eval()
            with ForwardContext(None):
                reft(torch.randn(1, 6, 4, dtype=dtype))
        except (RuntimeError, NotImplementedError) as error:
            print(f"{type(config).__name__}, {dtype}: {error}")

reft = ReftModule(
    4, adapters.NoReftConfig(prefix_positions=3, suffix_positions=3, tied_weights=True, dropout=0.0)
).eval()
for tokens in (6, 5, 2):
    x = torch.randn(1, tokens, 4)
    with ForwardContext(None):
        print(f"3 first and 3 last of {tokens} tokens: off by {(reft(x) - reft.units[0](x)).abs().max():.1g}")
