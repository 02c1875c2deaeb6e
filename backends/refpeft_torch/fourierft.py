"""FourierFT in torch: its complex inverse FFT, of which the real part is taken."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("fourierft.linear")
def linear(x, weight, values, places, bias=None, *, scaling):
    """The base layer and the update, side by side."""
    return F.linear(x, weight, bias) + F.linear(x, _delta(weight, values, places, scaling))


@implements("fourierft.merge")
def merge(weight, values, places, *, scaling):
    """The weight with the update in it."""
    return weight + _delta(weight, values, places, scaling)


def _delta(weight, values, places, scaling):
    """In float32 at least: torch has no FFT in half precision on the CPU."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    spectrum = torch.zeros(weight.numel(), dtype=wide.dtype, device=wide.device).index_put((places,), wide)
    return (scaling * torch.fft.ifft2(spectrum.reshape(weight.shape)).real).to(weight.dtype)
