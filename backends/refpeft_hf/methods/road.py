"""RoAd as peft has it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


@implements("road.linear")
def linear(x, weight, theta, alpha, bias=None, *, group, variant="road_1"):
    """``peft.tuners.road.layer.Linear``."""
    layer = around_linear(weight, bias, "RoadConfig", variant=variant, group_size=group)
    return called(layer, x, weight, bias, road_theta=theta, road_alpha=alpha)


@implements("road.merge", gradients=False)
def merge(weight, theta, alpha, *, group, variant="road_1"):
    """``merge``."""
    layer = around_linear(weight, None, "RoadConfig", variant=variant, group_size=group)
    return merged(layer, weight, road_theta=theta, road_alpha=alpha)
