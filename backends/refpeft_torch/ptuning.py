"""P-tuning's encoders in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("ptuning.mlp")
def mlp(embedding, w1, b1, w2, b2, w3, b3):
    """Three linear layers, two relus."""
    return F.linear(F.relu(F.linear(F.relu(F.linear(embedding, w1, b1)), w2, b2)), w3, b3)


@implements("ptuning.lstm")
def lstm(embedding, w_1, u_1, b_1, w_2, u_2, b_2, w_3, b_3, w_4, b_4):
    """torch's own bidirectional LSTM of two layers, then a perceptron."""
    flat = []
    for w, u, b in ((w_1, u_1, b_1), (w_2, u_2, b_2)):
        for direction in range(2):
            flat += [w[direction], u[direction], b[direction], torch.zeros_like(b[direction])]
    size = u_1.shape[-1]
    start = embedding.new_zeros(4, 1, size)
    states, _, _ = torch.lstm(embedding[None], (start, start), flat, True, 2, 0.0, False, True, True)
    return F.linear(F.relu(F.linear(states[0], w_3, b_3)), w_4, b_4)
