"""Prompts and prefixes as AdapterHub has them; attention itself is the model's."""

import functools
from types import SimpleNamespace

import adapters
import torch
from adapters.methods.prefix_tuning import FlatPrefixTuning, PrefixTuning, PrefixTuningLayer
from adapters.methods.prompt_tuning import PromptTuning

from refpeft_hf.adapterhub_layers import ADAPTER, forward_pass, known
from refpeft_hf.declared import implements
from refpeft_hf.layers import one_batch

PLACE = "encoder_prefix"


def some(name, axis):
    """At least one virtual token."""
    return lambda shapes, attributes: "" if shapes[name][axis] else "adapters takes no prompt without a token"


def halves(shapes, attributes):
    """Keys, and as many values."""
    return "adapters has as many columns of keys as of values" if shapes["w2"][0] % 2 else ""


@functools.lru_cache(maxsize=64)
def prompt_of(tokens: int, width: int):
    """The module of such a prompt."""
    how = adapters.PromptTuningConfig(prompt_length=tokens)
    return PromptTuning(ADAPTER, how, SimpleNamespace(hidden_size=width), None).eval().requires_grad_(False)


@implements("prompt.embed", some("prompt", 0))
def embed(x, prompt):
    """``PromptTuning``."""
    tensors = {"prompt_embedding.weight": prompt}
    y, _ = torch.func.functional_call(prompt_of(*prompt.shape), tensors, (one_batch(x, 2),))
    return y.reshape(*x.shape[:-2], *y.shape[1:])


@functools.lru_cache(maxsize=256)
def prefix_of(kind, layers: int, groups: int, size: int, width: int, **options):
    """The module of a prefix for all layers of a model."""
    how = adapters.PrefixTuningConfig(**options)
    return kind(layers, groups, width, how, n_embd_per_head=size).eval().requires_grad_(False)


@implements("prefix.encode", halves)
def encode(embedding, w1, b1, w2, b2):
    """``PrefixTuning`` of one layer with one head."""
    names = ("wte.weight", "control_trans.0.weight", "control_trans.0.bias", "control_trans.2.weight")
    tensors = dict(zip((*names, "control_trans.2.bias"), (embedding, w1, b1, w2, b2)))
    p, width = embedding.shape
    module = prefix_of(PrefixTuning, 1, 1, len(w2) // 2, width, prefix_length=p, bottleneck_size=len(w1))
    keys, values = torch.func.functional_call(module, tensors, (1,))[0]
    return torch.cat([keys, values], dim=-1).reshape(p, len(w2))


@implements("prefix.cut")
def cut(flat, *, l, g, d):  # noqa: E741
    """``FlatPrefixTuning``, for a batch of one."""
    module = prefix_of(FlatPrefixTuning, l, g, d, g * d, prefix_length=len(flat), flat=True)
    layers = torch.func.functional_call(module, {"control_trans": flat.reshape(-1)}, (1,))
    return tuple(torch.stack([layer[part, 0] for layer in layers]) for part in (0, 1))


@functools.lru_cache(maxsize=1)
def in_attention():
    """The layer that puts a prefix before the keys and values of one attention layer."""
    layer = PrefixTuningLayer(PLACE, None, known(adapters.PrefixTuningConfig()))
    layer.prefixes[ADAPTER], layer.layer_idx = 0, 0
    return layer.eval()


@implements("prefix.attention", some("prefix_k", 1))
def attention(q, k, v, prefix_k, prefix_v, mask=None, *, causal=False, offset=0):
    """``PrefixTuningLayer``."""
    return attended(
        lambda k, v, seen: in_attention()(k, v, None, seen), q, k, v, prefix_k, prefix_v, mask, causal, offset
    )


def attended(layer, q, k, v, prefix_k, prefix_v, mask, causal, offset):
    """The layer on keys, values and the mask of numbers that models add to scores; then torch's attention."""
    batch = q.shape[:-3]
    q, k, v = (one_batch(z, 3) for z in (q, k, v))
    n, (s, t) = len(q), (q.shape[-2], k.shape[-2])
    seen = q.new_ones(n, 1, s, t).bool() if mask is None else one_batch(mask, 2).unsqueeze(1)
    if causal:
        seen = seen & torch.ones(s, t, dtype=torch.bool).tril(offset)
    hidden = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf)
    prefix = tuple(z.expand(n, *z.shape) for z in (prefix_k, prefix_v))
    with forward_pass(prefix_states={ADAPTER: {PLACE: [prefix]}}):
        k, v, hidden = layer(k, v, hidden)
    k, v = (z.repeat_interleave(q.shape[1] // z.shape[1], dim=1) for z in (k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
    return y.reshape(*batch, *y.shape[1:])
