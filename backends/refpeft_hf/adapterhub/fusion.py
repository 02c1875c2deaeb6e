"""AdapterFusion as AdapterHub has it. Where no bias or residual is given, it is zero, as the bias of the keys is."""

import functools

import adapters
import torch
from adapters.methods.modeling import BertFusion

from refpeft_hf.declared import implements


@functools.lru_cache(maxsize=64)
def block(temperature):
    """The block, which begins at a temperature; its sizes are those of the tensors that it is called with."""
    module = BertFusion(adapters.DynamicAdapterFusionConfig(), 1, 0.0)
    module.T, module.reduction = temperature, temperature / 1000
    return module.eval().requires_grad_(False)


@implements("adapter.fusion")
def fusion(x, adapted, query, key, value, query_bias=None, residual=None, *, temperature=1.0):
    """``BertFusion`` on one sequence, at a temperature."""
    tensors = {
        "query.weight": query,
        "query.bias": query.new_zeros(len(query)) if query_bias is None else query_bias,
        "key.weight": key,
        "key.bias": key.new_zeros(len(key)),
        "value.weight": value,
    }
    n, (k, d), o = x.shape[:-1].numel(), adapted.shape[-2:], len(value)
    residual = x.new_zeros(n, o) if residual is None else residual
    z = adapted.reshape(1, n, k, d)
    y = torch.func.functional_call(block(temperature), tensors, (x.reshape(1, n, d), z, z, residual.reshape(1, n, o)))
    return y.reshape(*x.shape[:-1], o)
