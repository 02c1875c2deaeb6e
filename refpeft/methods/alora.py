"""aLoRA, configured."""

from __future__ import annotations

from refpeft.methods import method
from refpeft.methods.lora import LoRA


@method("alora")
class ALoRA(LoRA):
    """LoRA that acts from an invocation in the sequence on; the offsets are an input of the layer."""

    operation = "alora.linear"
    paper = "arXiv:2504.12397"
    peft = ("LORA: alora_invocation_tokens",)
    adapters = ()
    not_mergeable = "the adapter acts on a part of the tokens only."
