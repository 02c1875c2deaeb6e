"""LoRA on an embedding table in torch."""

import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("lora.embedding")
def embedding(ids, weight, a, b, *, scaling):
    """Two look-ups, the second in the transposed A."""
    return F.embedding(ids, weight) + scaling * F.linear(F.embedding(ids, a.T), b)
