"""Arrow as peft has it: a router among the adapters of a LoRA layer, which makes its prototypes itself at the first call."""

from types import SimpleNamespace

import peft
import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.variants import ArrowLinearVariant

from refpeft_hf.declared import implements
from refpeft_hf.layers import one_batch


def router_of(adapters: int, chosen: int, temperature: float, prototypes):
    """peft's router, with prototypes in place of its own."""
    config = peft.tuners.lora.config.ArrowConfig(top_k=chosen, router_temperature=temperature)
    config.task_adapter_names = [str(k) for k in range(adapters)]
    router = ArrowLoraLinearLayer(prototypes.shape[1], config)
    router.prototypes, router._protos_ready = prototypes, True
    return router


@implements("arrow.linear")
def linear(x, weight, a, b, prototypes, bias=None, *, scaling, chosen, temperature=1.0):
    """``peft.tuners.lora.variants.ArrowLinearVariant`` beside the base layer."""
    names = [str(k) for k in range(len(a))]
    module = SimpleNamespace(
        lora_arrow={"router": router_of(len(a), chosen, temperature, prototypes)},
        lora_A={n: SimpleNamespace(weight=w) for n, w in zip(names, a)},
        lora_B={n: SimpleNamespace(weight=w) for n, w in zip(names, b)},
        lora_dropout={"router": torch.nn.Identity()},
        scaling=dict.fromkeys(names, scaling),
    )
    tokens = one_batch(x, 1)
    base = torch.nn.functional.linear(tokens, weight, bias)
    y = ArrowLinearVariant.forward(module, active_adapter="router", x=tokens, result=base)
    return y.reshape(*x.shape[:-1], len(weight))
