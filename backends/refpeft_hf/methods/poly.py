"""Poly as peft has it, in evaluation. It divides by the rank: a power of two between that and the scaling goes into B.

Its epsilon is a constant of the module, the problem's here.
"""

import math
from unittest import mock

import torch
from peft.tuners.poly import router

from refpeft_hf.declared import implements, without
from refpeft_hf.layers import around_linear, named, one_batch


def over_the_rank(shapes, attributes):
    """Its scale."""
    exact = abs(math.frexp(attributes["scaling"] * shapes["a"][3])[0]) == 0.5
    return "" if exact else "peft's scale is one over the rank"


drawn = without("noise", "peft draws its noise itself and takes none")


@implements("poly.linear", over_the_rank, drawn)
def linear(x, weight, a, b, logits, task, noise=None, bias=None, *, scaling, epsilon=1e-12):
    """``peft.tuners.poly.layer.Linear``."""
    (heads, skills, _, r), tasks = a.shape, len(logits)
    layer = around_linear(weight, bias, "PolyConfig", r=r, n_tasks=tasks, n_skills=skills, n_splits=heads)
    parameters = {"poly_lora_A": a, "poly_lora_B": b * (scaling * r)}
    parameters["poly_router.module_logits"] = logits.flatten(1)
    tensors = named(layer, weight, bias, parameters)
    with mock.patch.object(router, "EPS", epsilon):
        y = torch.func.functional_call(layer, tensors, (one_batch(x, 2),), {"task_ids": task.flatten()})
    return y.reshape(*x.shape[:-1], len(weight))
