"""OFT as peft has it: its Cayley transform is the inverse of the paper's, its Neumann series tends to the paper's."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_convolution, around_linear, called, merged


def readings(shapes, attributes):
    """The two that peft has."""
    return "peft rotates by the inverse of the paper's matrix" if attributes["variant"] == "paper" else ""


def not_dilated(shapes, attributes):
    """Patches of neighbours."""
    return "" if tuple(attributes["dilation"]) == (1, 1) else "peft's OFT takes no dilated convolution"


def how(block, share, variant, terms):
    """The configuration's arguments."""
    neumann = {"use_cayley_neumann": variant == "neumann", "num_cayley_neumann_terms": terms}
    return {"oft_block_size": block, "block_share": share} | neumann


@implements("oft.linear", readings)
def linear(x, weight, skew, bias=None, *, block, share=False, variant="paper", terms=5):
    """``peft.tuners.oft.layer.Linear``."""
    layer = around_linear(weight, bias, "OFTConfig", **how(block, share, variant, terms))
    return called(layer, x, weight, bias, oft_R=skew)


@implements("oft.merge", readings, gradients=False)
def merge(weight, skew, *, block, share=False, variant="paper", terms=5):
    """``merge``."""
    layer = around_linear(weight, None, "OFTConfig", **how(block, share, variant, terms))
    return merged(layer, weight, oft_R=skew)


@implements("oft.conv2d", readings, not_dilated)
def conv2d(
    x,
    weight,
    skew,
    bias=None,
    *,
    block,
    share=False,
    variant="paper",
    terms=5,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """``peft.tuners.oft.layer.Conv2d``."""
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = around_convolution(weight, bias, groups, where, "OFTConfig", **how(block, share, variant, terms))
    return called(layer, x, weight, bias, oft_R=skew)
