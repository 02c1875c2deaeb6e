"""Prints how far an LSTM's weight gradients over 4096 equal steps lie from those of the same float16 weights in float32."""

import torch

torch.manual_seed(0)
half = torch.nn.LSTM(4, 4).to(torch.float16)
single = torch.nn.LSTM(4, 4)
single.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
for model in (half, single):
    steps = torch.ones(4096, 1, 4, dtype=next(model.parameters()).dtype)
    model(steps)[0].sum().backward()
for (name, got), wanted in zip(half.named_parameters(), single.parameters()):
    apart = (got.grad.float() - wanted.grad).abs().max() / wanted.grad.abs().max()
    print(f"{name:13} {float(apart):7.2%}")
