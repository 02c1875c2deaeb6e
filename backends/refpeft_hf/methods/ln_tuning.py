"""LayerNorm tuning as peft has it: a copy of the norm in its place."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import built, called


def with_a_gain(shapes, attributes):
    """What torch's norm has."""
    return "" if "weight" in shapes else "peft tunes what the norm has, a gain at least"


@implements("nn.layer_norm", with_a_gain)
def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """``peft.tuners.ln_tuning.layer.LNTuningLayer``."""
    how = (("bias", bias is not None), ("eps", eps))
    layer = built("LayerNorm", (tuple(weight.shape),), how, weight.dtype, "LNTuningConfig", None, ())
    trained = {"ln_tuning_layers.weight": weight} | ({} if bias is None else {"ln_tuning_layers.bias": bias})
    return called(layer, x, None, None, **trained)
