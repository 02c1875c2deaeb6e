"""BD-LoRA as peft has it: one of the factors in blocks."""

import peft

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def one_of_two(shapes, attributes):
    """A or B."""
    both = attributes["blocks_a"] > 1 and attributes["blocks_b"] > 1
    return "peft cuts one factor into blocks, not both" if both else ""


def layer_of(weight, r, bias, scaling, blocks_a, blocks_b):
    """peft's layer: A in blocks, or B."""
    which = "target_modules_bd_b" if blocks_b > 1 else "target_modules_bd_a"
    how = Blocks(**{which: ("adapted",)}, nblocks=max(blocks_a, blocks_b))
    return around_linear(weight, bias, "LoraConfig", scaling=scaling, r=r, use_bdlora=how)


class Blocks(peft.BdLoraConfig):
    """peft's configuration, which stands in a key of the layers that are kept."""

    def __hash__(self):
        return hash((self.target_modules_bd_a, self.target_modules_bd_b, self.nblocks))


@implements("bdlora.linear", one_of_two)
def linear(x, weight, a, b, bias=None, *, scaling, blocks_a=1, blocks_b=1):
    """``peft.tuners.lora.variants.BdLoraLinearVariant``."""
    layer = layer_of(weight, a.shape[0], bias, scaling, blocks_a, blocks_b)
    return called(layer, x, weight, bias, lora_A=a, lora_B=b)


@implements("bdlora.merge", one_of_two, gradients=False)
def merge(weight, a, b, *, scaling, blocks_a=1, blocks_b=1):
    """``merge``."""
    return merged(layer_of(weight, a.shape[0], None, scaling, blocks_a, blocks_b), weight, lora_A=a, lora_B=b)
