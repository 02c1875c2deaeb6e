"""ReFT as AdapterHub has it, with one unit for the first and the last tokens; here all are among the first."""

import functools

import adapters
import torch
from adapters.methods.reft import ReftModule

from refpeft_hf.adapterhub_layers import forward_pass
from refpeft_hf.declared import implements


@functools.lru_cache(maxsize=64)
def module_of(subtract: bool, tokens: int):
    """Without an orthogonal parametrisation; its sizes are those of the tensors that it is called with."""
    config = adapters.NoReftConfig if subtract else adapters.DiReftConfig
    return ReftModule(1, config(prefix_positions=tokens, dropout=0.0, tied_weights=True)).eval().requires_grad_(False)


@implements("reft.edit")
def edit(x, source, projection, bias=None, *, subtract=True):
    """``ReftModule`` on one sequence."""
    sequence = x.reshape(1, x.shape[:-1].numel(), x.shape[-1])
    tensors = {
        "units.0.learned_source.weight": source,
        "units.0.learned_source.bias": source.new_zeros(len(source)) if bias is None else bias,
        "units.0.projection.weight": projection,
    }
    module = module_of(subtract, max(1, sequence.shape[1]))
    with forward_pass():
        y = torch.func.functional_call(module, tensors, (sequence,))
    return y.reshape(x.shape)
