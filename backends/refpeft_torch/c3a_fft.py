"""C3A in torch by its FFT of reals: spectra are multiplied, the kernel's conjugated."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("c3a.linear_fft")
def linear(x, weight, kernel, bias=None, *, normalised=False):
    """The base layer and the convolution, side by side."""
    p, q, b = kernel.shape
    u = _correlated(_wide(x).reshape(-1, q, b), _wide(kernel)).reshape(*x.shape[:-1], p * b)
    return F.linear(x, weight, bias) + (u / (q * b) if normalised else u).to(x.dtype)


@implements("c3a.merge_fft")
def merge(weight, kernel, *, normalised=False):
    """The weight with what the convolution makes of unit vectors in it."""
    p, q, b = kernel.shape
    units = torch.eye(q * b, dtype=_wide(kernel).dtype, device=kernel.device).reshape(q * b, q, b)
    delta = _correlated(units, _wide(kernel)).reshape(q * b, p * b).T
    return weight + (delta / (q * b) if normalised else delta).to(weight.dtype)


def _correlated(x, kernel):
    """sum over q of the circular correlation of kernel (p, q, b) with x (n, q, b); torch's FFT takes no empty batch."""
    if not x.numel():
        return torch.einsum("nqb,pqb->npb", x, kernel)
    spectrum = torch.einsum("nqf,pqf->npf", torch.fft.rfft(x), torch.fft.rfft(kernel).conj())
    return torch.fft.irfft(spectrum, n=kernel.shape[-1])


def _wide(x):
    """In float32 at least: torch has no FFT in half precision on the CPU."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
