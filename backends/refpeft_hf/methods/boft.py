"""BOFT as peft has it; more than one factor needs its extension for CUDA."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_convolution, around_linear, called, merged

one = only("factors", 1, "more than one factor needs peft's extension for CUDA")
ungrouped = only("groups", 1, "peft's BOFT takes no groups")
reading = only("variant", "peft", "peft rotates by the inverse of the paper's matrix")


def layer_of(weight, bias, block):
    """peft's layer for these shapes."""
    return around_linear(weight, bias, "BOFTConfig", boft_block_size=block, boft_n_butterfly_factor=1)


@implements("boft.linear", one, reading)
def linear(x, weight, q, scale, bias=None, *, block, factors=1, variant="peft"):
    """``peft.tuners.boft.layer.Linear``."""
    return called(layer_of(weight, bias, block), x, weight, bias, boft_R=q, boft_s=scale.unsqueeze(1))


@implements("boft.merge", one, reading, gradients=False)
def merge(weight, q, scale, *, block, factors=1, variant="peft"):
    """``merge``."""
    return merged(layer_of(weight, None, block), weight, boft_R=q, boft_s=scale.unsqueeze(1))


@implements("boft.conv2d", one, reading, ungrouped)
def conv2d(x, weight, q, scale, bias=None, *, block, factors=1, variant="peft", groups=1, **where):
    """``peft.tuners.boft.layer.Conv2d``."""
    options = {"boft_block_size": block, "boft_n_butterfly_factor": 1}
    layer = around_convolution(weight, bias, groups, where, "BOFTConfig", **options)
    return called(layer, x, weight, bias, boft_R=q, boft_s=scale.unsqueeze(0))
