"""VB-LoRA as peft has it."""

from refpeft_hf.declared import implements
from refpeft_hf.layers import around_linear, called, merged


def layer_of(weight, logits_a, vectors, bias, chosen):
    """peft's layer for these shapes."""
    bank = {"num_vectors": vectors.shape[0], "vector_length": vectors.shape[1], "topk": chosen}
    return around_linear(weight, bias, "VBLoRAConfig", r=logits_a.shape[0], **bank)


def parameters(logits_a, logits_b, vectors):
    """By peft's names."""
    return {"vblora_logits_A": logits_a, "vblora_logits_B": logits_b, "vblora_vector_bank": vectors}


@implements("vblora.linear")
def linear(x, weight, logits_a, logits_b, vectors, bias=None, *, chosen):
    """``peft.tuners.vblora.layer.Linear``."""
    layer = layer_of(weight, logits_a, vectors, bias, chosen)
    return called(layer, x, weight, bias, **parameters(logits_a, logits_b, vectors))


@implements("vblora.merge", gradients=False)
def merge(weight, logits_a, logits_b, vectors, *, chosen):
    """``merge``."""
    layer = layer_of(weight, logits_a, vectors, None, chosen)
    return merged(layer, weight, **parameters(logits_a, logits_b, vectors))
