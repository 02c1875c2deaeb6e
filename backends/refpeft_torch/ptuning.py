"""P-tuning's encoders in torch.

The backward of ``torch.lstm`` on the CPU adds the steps' gradients up in float16: the layers run in float32 or wider there. On
CUDA they run in torch's own kernels, since cuDNN's gates are off by hundreds of ulps.
"""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


@implements("ptuning.mlp")
def mlp(embedding, w1, b1, w2, b2, w3, b3):
    """Three linear layers, two relus."""
    return F.linear(F.relu(F.linear(F.relu(F.linear(embedding, w1, b1)), w2, b2)), w3, b3)


@implements("ptuning.lstm")
def lstm(embedding, w_1, u_1, b_1, w_2, u_2, b_2, w_3, b_3, w_4, b_4):
    """torch's own bidirectional LSTM of two layers, then a perceptron."""
    x, *layers = widened(embedding, w_1, u_1, b_1, w_2, u_2, b_2)
    flat = []
    for w, u, b in (layers[:3], layers[3:]):
        for direction in range(2):
            flat += [w[direction], u[direction], b[direction], torch.zeros_like(b[direction])]
    start = x.new_zeros(4, 1, u_1.shape[-1])
    with torch.backends.cudnn.flags(enabled=False):
        states, _, _ = torch.lstm(x[None], (start, start), flat, True, 2, 0.0, False, True, True)
    return F.linear(F.relu(F.linear(states[0].to(embedding.dtype), w_3, b_3)), w_4, b_4)
