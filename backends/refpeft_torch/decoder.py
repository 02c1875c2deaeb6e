"""The parts of a decoder in torch. Numbers of 16 bits are computed with in float32 and rounded once."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import wide


@implements("nn.rms_norm")
def rms_norm(x, weight=None, *, eps=1e-6):
    """A quotient, whose gradient underflows less than ``torch.nn.functional.rms_norm``, which multiplies by the inverse."""
    wide_x, weight = map(wide, (x, weight))
    normal = wide_x / torch.sqrt(wide_x.square().mean(-1, keepdim=True) + eps)
    return (normal if weight is None else normal * weight).to(x.dtype)


@implements("nn.rope")
def rope(x, cos, sin, *, layout="halves"):
    """x cos + turned(x) sin, turned(x) = (-x2, x1), as Llama's code has it; tables repeated for both of a pair."""
    wide_x, cos, sin = map(wide, (x, cos, sin))
    axis, both = (-2, (2, -1)) if layout == "halves" else (-1, (-1, 2))
    first, second = wide_x.unflatten(-1, both).unbind(axis)
    turned = torch.stack([-second, first], dim=axis).flatten(-2)
    cos, sin = (torch.stack([table, table], dim=axis).flatten(-2) for table in (cos, sin))
    return (wide_x * cos + turned * sin).to(x.dtype)


@implements("nn.swiglu")
def swiglu(gate, up):
    """``torch.nn.functional.silu`` and a product."""
    return (F.silu(wide(gate)) * wide(up)).to(gate.dtype)


@implements("nn.embedding")
def embedding(ids, weight):
    """``torch.nn.functional.embedding``, whose backward on the CPU adds up in the table's own dtype: looked up wide."""
    return F.embedding(ids, wide(weight)).to(weight.dtype)


@implements("nn.cross_entropy")
def cross_entropy(logits, target, mask=None):
    """``torch.nn.functional.cross_entropy``, tokens that do not count by its ``ignore_index``."""
    if mask is not None:
        target = target.masked_fill(~mask, -100)
    total = F.cross_entropy(wide(logits).reshape(-1, logits.shape[-1]), target.reshape(-1), reduction="sum")
    return (total / (target >= 0).sum().clamp(min=1)).to(logits.dtype)


@implements("nn.lm_loss")
def lm_loss(x, weight, target, mask=None):
    """`cross_entropy` of ``torch.nn.functional.linear``, whose logits stay wide."""
    return cross_entropy(F.linear(wide(x), wide(weight)), target, mask).to(x.dtype)


@implements("nn.qkv")
def qkv(x, q_weight, k_weight, v_weight, q_bias=None, k_bias=None, v_bias=None):
    """One ``torch.nn.functional.linear``, the matrices one below the other."""
    matrices, biases = (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias)
    parts = F.linear(x, torch.cat(matrices)).split([len(matrix) for matrix in matrices], dim=-1)
    return tuple(part if bias is None else part + bias for part, bias in zip(parts, biases))
