"""PEANuT as peft has it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def layer_of(weight, encoders, bias, scaling):
    """peft's layer for these shapes."""
    depth, r, _ = encoders.shape
    return around_linear(weight, bias, "PeanutConfig", r=r, depth=depth, scaling=scaling)


def tower(first, encoders, decoders, last):
    """By peft's names, a matrix for each level."""
    levels = {"peanut_encoders": encoders, "peanut_decoders": decoders}
    inner = {f"{name}.{j}.weight": level for name, stack in levels.items() for j, level in enumerate(stack)}
    return {"peanut_A": first, "peanut_B": last} | inner


@implements("peanut.linear")
def linear(x, weight, first, encoders, decoders, last, bias=None, *, scaling):
    """``peft.tuners.peanut.layer.Linear``."""
    return called(layer_of(weight, encoders, bias, scaling), x, weight, bias, **tower(first, encoders, decoders, last))


@implements("peanut.merge", gradients=False)
def merge(weight, first, encoders, decoders, last, *, scaling):
    """``merge``."""
    return merged(layer_of(weight, encoders, None, scaling), weight, **tower(first, encoders, decoders, last))
