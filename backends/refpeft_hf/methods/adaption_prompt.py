"""The adaption prompt as peft has it: its attention around one that gives the problem's result and queries.

A gate for each head stands where peft has one for the layer. The softmax is in float32, whatever the model's dtype.
"""

from types import SimpleNamespace

import torch
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG, ModelTypeConfig
from peft.tuners.adaption_prompt.layer import AdaptedAttention

from refpeft_hf.declared import implements
from refpeft_hf.layers import one_batch

GIVEN = "given"
TRANSFORMERS_MODEL_CONFIG[GIVEN] = ModelTypeConfig(
    compute_query_states=lambda model, queries, **others: queries,
    target_modules=None,
    k_proj_layer="k_proj",
    v_proj_layer="v_proj",
    o_proj_layer=None,
)


class Attention(torch.nn.Module):
    """An attention whose result is given, of h heads in g groups."""

    def __init__(self, heads, size, weight_k, weight_v):
        super().__init__()
        groups, _, width = weight_k.shape
        self.config = SimpleNamespace(hidden_size=width, num_attention_heads=heads)
        self.head_dim = size
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, torch.nn.Linear(width, groups * size, bias=False, dtype=weight_k.dtype))
        self.k_proj.in_features = heads * size

    def forward(self, result, **others):
        """The base attention."""
        return (result,)


def as_wide(shapes, attributes):
    """Values as keys."""
    return "" if shapes["weight_k"][1] == shapes["weight_v"][1] else "peft's values are as wide as its keys"


@implements("adaption_prompt.attention", as_wide)
def attention(base, q, prompt, weight_k, weight_v, gate):
    """``peft.tuners.adaption_prompt.layer.AdaptedAttention``, without an output projection."""
    *_, heads, steps, size = base.shape
    inner = Attention(heads, size, weight_k, weight_v)
    layer = AdaptedAttention(GIVEN, len(prompt), inner).requires_grad_(False)
    tensors = {"model.k_proj.weight": weight_k.flatten(0, 1), "model.v_proj.weight": weight_v.flatten(0, 1)}
    tensors |= {"adaption_prompt": prompt.unsqueeze(0), "adaption_gate": gate.reshape(heads, 1, 1)}
    result = one_batch(base, 3).transpose(1, 2).flatten(2)
    keywords = {"result": result, "queries": one_batch(q, 3)}
    y = torch.func.functional_call(layer, tensors, (), keywords)[0]
    return y.reshape(len(result), steps, heads, size).transpose(1, 2).reshape(base.shape)
