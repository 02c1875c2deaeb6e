"""WaveFT in torch: the inverse wavelet transform of the whole matrix of coefficients, as one transposed convolution."""

import torch
import torch.nn.functional as F

from refpeft.wavelets import LOW
from refpeft_torch.autograd import implements


@implements("waveft.linear")
def linear(x, weight, values, places, bias=None, *, scaling, wavelet="db1"):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, _delta(weight, values, places, scaling, wavelet))


@implements("waveft.merge")
def merge(weight, values, places, *, scaling, wavelet="db1"):
    """The weight with the update in it."""
    return weight + _delta(weight, values, places, scaling, wavelet)


def _delta(weight, values, places, scaling, wavelet):
    """In float32 at least. The four quarters of the matrix are the four channels of the convolution."""
    (o, i), length = weight.shape, len(LOW[wavelet])
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    low = torch.tensor(LOW[wavelet], dtype=wide.dtype, device=wide.device)
    high = low.flip(0) * torch.tensor([1, -1], device=wide.device).repeat(length // 2)
    m, n = ((side + length - 1) // 2 * 2 for side in (o, i))
    row, column = places // i + (m - o) // 2, places % i + (n - i) // 2
    matrix = torch.zeros(m, n, dtype=wide.dtype, device=wide.device).index_put((row, column), wide)
    quarters = torch.stack([half for rows in matrix.chunk(2) for half in rows.chunk(2, dim=1)])
    filters = torch.stack([torch.outer(down, across) for across in (low, high) for down in (low, high)])
    whole = F.conv_transpose2d(quarters[None], filters[:, None], stride=2)[0, 0]
    return (scaling * whole[length - 2 :, length - 2 :][:o, :i]).to(weight.dtype)
