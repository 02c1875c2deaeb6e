"""Prints how far a float32 LSTM on CUDA lies from float64, in ulps: by cuDNN, and by torch's own kernels."""

import copy

import torch

torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
exact = torch.nn.LSTM(8, 8, num_layers=2, bidirectional=True, dtype=torch.float64)
for parameter in exact.parameters():
    parameter.data = parameter.data.float().double()
x, dy = (torch.randn(16, 1, n, dtype=torch.float32).double() for n in (8, 16))


def run(model, x, dy):
    """Outputs, then gradients."""
    x = x.requires_grad_()
    y, _ = model(x)
    y.backward(dy)
    return [("y", y.detach()), ("dx", x.grad)] + [(n, p.grad) for n, p in model.named_parameters()]


wanted = run(exact, x, dy)
for name, enabled in (("cuDNN", True), ("torch", False)):
    model = copy.deepcopy(exact).cuda().float()
    model.zero_grad()
    with torch.backends.cudnn.flags(enabled=enabled, allow_tf32=False):
        got = run(model, x.detach().cuda().float(), dy.cuda().float())
    apart = [(g.cpu().double() - w).abs().max() / w.abs().max() * 2**23 for (_, g), (_, w) in zip(got, wanted)]
    print(f"{name}: y {apart[0]:.1f} ulps, gradients up to {max(apart[1:]):.1f} ulps")
