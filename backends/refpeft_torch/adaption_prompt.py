"""LLaMA-Adapter's gated prompt in torch."""

import torch

from refpeft_torch.attention import attend
from refpeft_torch.autograd import implements


@implements("adaption_prompt.attention")
def attention(base, q, prompt, weight_k, weight_v, gate):
    """Attention over the prompt alone, gated, beside the frozen one."""
    k, v = (torch.einsum("pc,gdc->gpd", prompt, w).expand(*q.shape[:-3], -1, -1, -1) for w in (weight_k, weight_v))
    return base + gate[:, None, None] * attend(q, k, v, None, None)
