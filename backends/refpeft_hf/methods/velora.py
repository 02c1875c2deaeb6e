"""VeLoRA as peft has it: in training, with the vector that it would draw at random given."""

import peft

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called


class Projection(peft.VeloraConfig):
    """peft's configuration, which stands in a key of the layers that are kept."""

    def __hash__(self):
        return hash((self.num_groups, self.scale))


def positive(shapes, attributes):
    """What restores the projections."""
    return "" if attributes["restore"] > 0 else "peft refuses a scale that is not positive"


@implements("velora.linear", positive)
def linear(x, weight, a, b, v, bias=None, *, scaling, groups, restore=1.0):
    """``peft.tuners.lora.variants.VeloraLinearVariant``."""
    how = Projection(num_groups=groups, scale=restore, init_type="random")
    layer = around_linear(weight, bias, "LoraConfig", scaling=scaling, r=a.shape[0], velora_config=how)
    return called(layer.train(), x, weight, bias, lora_A=a, lora_B=b, lora_velora_embed=v)
