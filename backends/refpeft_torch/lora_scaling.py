"""LoRA's factor in torch."""

import math

from refpeft_torch.autograd import implements


@implements("lora.scaling")
def scaling(alpha, *, rank, variant="lora"):
    """A division by a Python number."""
    return alpha / (rank if variant == "lora" else math.sqrt(rank))
