"""X-LoRA as peft has it: its layer around a LoRA layer of several adapters, its classifier, and its choice of gates."""

from types import SimpleNamespace

import peft
import torch
from peft.tuners.xlora.classifier import XLoraClassifier
from peft.tuners.xlora.layer import XLoraLayer, XLoraLinearLayer

from refpeft_hf.declared import implements, no_mask
from refpeft_hf.layers import one_batch, several


def configuration(**options):
    """peft's configuration, of any adapters."""
    return peft.XLoraConfig(hidden_size=1, adapters={"0": ""}, **options)


class Gated(torch.nn.Module):
    """A LoRA layer with X-LoRA's forward."""

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, gates):
        """``peft.tuners.xlora.layer.XLoraLinearLayer``, of one layer."""
        model = SimpleNamespace(disabled=False)
        layer = XLoraLinearLayer(model, self.target, self.target.forward, 0, configuration())
        return layer.forward(x, scalings=gates.unsqueeze(2))


def sequence(array):
    """All tokens as one sequence: a batch of one."""
    return one_batch(array, 1).unsqueeze(0)


@implements("xlora.linear", no_mask)
def linear(x, weight, a, b, gates, bias=None, mask=None, *, scaling, keep=1.0):
    """Every adapter with the same scale."""
    layer, tensors = several(weight, bias, a, b)
    layer.scaling = dict.fromkeys(layer.scaling, scaling)
    tensors = {f"target.{n}": t for n, t in tensors.items()}
    y = torch.func.functional_call(Gated(layer), tensors, (sequence(x), sequence(gates)))
    return y.reshape(*x.shape[:-1], len(weight))


@implements("xlora.gates")
def gates(hidden, head, head_bias=None, *, temperature=1.0):
    """``peft.tuners.xlora.classifier.XLoraClassifier`` of one layer; where no bias is given, it is zero."""
    k, d = head.shape
    how = configuration(softmax_temperature=temperature)
    how.hidden_size = d
    model = torch.nn.Linear(1, 1, dtype=hidden.dtype)
    classifier = XLoraClassifier(model, how, k, 1, torch.device("cpu"))
    bias = head.new_zeros(k) if head_bias is None else head_bias
    tensors = {"layers.0.weight": head, "layers.0.bias": bias}
    states = SimpleNamespace(hidden_states=[sequence(hidden)])
    given = torch.func.functional_call(classifier, tensors, (states,), {"inputs_embeds": sequence(hidden)})
    return given.reshape(*hidden.shape[:-1], k)


@implements("xlora.top")
def top(gates, *, chosen, softmax=False):
    """``get_maybe_topk_scalings`` of one layer."""
    how = configuration(top_k_lora=chosen, enable_softmax_topk=softmax, enable_softmax=not softmax)
    kept = XLoraLayer(None, None, None, 0, how).get_maybe_topk_scalings(sequence(gates).unsqueeze(2))
    return kept.reshape(gates.shape)
