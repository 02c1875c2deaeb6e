"""VeRA as peft has it: frozen projections that the model's layers share, and two trained vectors."""

from refpeft_hf.declared import implements, no_mask, without
from refpeft_hf.layers import around_linear, called, merged


@implements("vera.linear", no_mask)
def linear(x, weight, a, b, lambda_d, lambda_b, bias=None, mask=None, *, keep=1.0):
    """``peft.tuners.vera.layer.Linear``."""
    layer = around_linear(weight, bias, "VeraConfig", r=a.shape[0])
    return called(layer, x, weight, bias, vera_A=a, vera_B=b, vera_lambda_d=lambda_d, vera_lambda_b=lambda_b)


@implements("vera.merge", gradients=False)
def merge(weight, a, b, lambda_d, lambda_b):
    """``merge``."""
    layer = around_linear(weight, None, "VeraConfig", r=a.shape[0])
    return merged(layer, weight, vera_A=a, vera_B=b, vera_lambda_d=lambda_d, vera_lambda_b=lambda_b)


@implements("pvera.linear", no_mask, without("noise", "peft draws its noise itself and takes none"))
def probabilistic(x, weight, a, b, lambda_d, lambda_b, noise=None, bias=None, mask=None, *, keep=1.0):
    """``peft.tuners.pvera.layer.Linear`` in evaluation: the mean of what it would draw."""
    layer = around_linear(weight, bias, "PveraConfig", r=b.shape[1])
    return called(layer, x, weight, bias, pvera_A=a, pvera_B=b, pvera_lambda_d=lambda_d, pvera_lambda_b=lambda_b)
