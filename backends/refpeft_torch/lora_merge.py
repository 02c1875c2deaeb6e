"""LoRA's update as a matrix, in torch."""

from refpeft_torch.autograd import implements


@implements("lora.delta")
def delta(a, b, *, scaling):
    """The product, then the scale."""
    return scaling * (b @ a)


@implements("lora.merge")
def merge(weight, a, b, *, scaling):
    """The scaled product, added to the base weight."""
    return weight + scaling * (b @ a)


@implements("lora.unmerge")
def unmerge(merged, a, b, *, scaling):
    """The scaled product, taken off again."""
    return merged - scaling * (b @ a)
