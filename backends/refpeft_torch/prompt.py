"""Prompts at the input embeddings in torch."""

import torch

from refpeft_torch.autograd import implements


@implements("prompt.embed")
def embed(x, prompt):
    """The prompt, expanded over the batch, before the input."""
    return torch.cat([prompt.expand(*x.shape[:-2], *prompt.shape), x], dim=-2)


@implements("cpt.embed")
def embed_context(x, tokens, delta):
    """The moved context before the input."""
    return embed(x, tokens + delta)


@implements("cpt.project")
def project(delta, epsilon):
    """``torch.renorm`` with a radius for each row."""
    norm = delta.norm(dim=-1)
    return torch.where((norm > epsilon)[:, None], delta * (epsilon / norm)[:, None], delta)


@implements("multitask_prompt.embed")
def embed_for_task(task, x, prompt, u, v):
    """The shared prompt times each example's low-rank matrix. The factors are looked up in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = u.to(wide)[task].to(u.dtype) @ v.to(wide)[task].to(v.dtype)
    return torch.cat([prompt * scale, x], dim=-2)
