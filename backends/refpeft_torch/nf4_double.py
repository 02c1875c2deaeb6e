"""Double quantisation of block maxima in torch."""

from refpeft_torch import dynamic8
from refpeft_torch.autograd import implements
from refpeft_torch.blocks import decode


@implements("nf4.offset")
def offset(absmax):
    """``torch.mean`` itself."""
    return absmax.mean()


@implements("nf4.double_quantize")
def double_quantize(absmax, offset, *, variant):
    """Dynamic 8-bit codes of what is left of the maxima."""
    return dynamic8.encode(absmax - offset, 256, True, variant)


@implements("nf4.double_dequantize")
def double_dequantize(codes, absmax2, offset):
    """One table look-up, one product, one sum."""
    return decode(dynamic8.dynamic_map(True, codes.device), codes, absmax2, 256) + offset
