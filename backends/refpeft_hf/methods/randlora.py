"""RandLoRA as peft has it: the sums over bases are contracted in the order in which they are stored."""

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import around_linear, called, merged

stored = only("variant", "peft", "peft contracts ranks and bases in stored order")


def full_rank(shapes, attributes):
    """As many bases as span the shorter side."""
    bases, short = shapes["gammas"]
    needed = -(-short // shapes["base_a"][0])
    return "" if bases == needed else "peft has as many bases as the shorter side needs for full rank"


def tensors(base_a, base_b, lambdas, gammas):
    """The layer's parameters and buffers."""
    bases = {"randlora_A": base_a.unsqueeze(1), "randlora_B": base_b}
    return bases | {"randlora_lambda": lambdas, "randlora_gamma": gammas}


@implements("randlora.linear", stored, full_rank)
def linear(x, weight, base_a, base_b, lambdas, gammas, bias=None, *, scaling, variant="peft"):
    """``peft.tuners.randlora.layer.Linear``."""
    layer = around_linear(weight, bias, "RandLoraConfig", r=base_a.shape[0], scaling=scaling)
    return called(layer, x, weight, bias, **tensors(base_a, base_b, lambdas, gammas))


@implements("randlora.merge", stored, full_rank, gradients=False)
def merge(weight, base_a, base_b, lambdas, gammas, *, scaling, variant="peft"):
    """``merge``."""
    layer = around_linear(weight, None, "RandLoraConfig", r=base_a.shape[0], scaling=scaling)
    return merged(layer, weight, **tensors(base_a, base_b, lambdas, gammas))
