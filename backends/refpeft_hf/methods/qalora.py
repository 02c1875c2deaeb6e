"""QA-LoRA as peft has it for layers quantised by GPTQ, around a plain one. It has no merge."""

from peft.tuners.lora.variants import QALoraLinearVariant

from refpeft_hf.declared import implements, only
from refpeft_hf.layers import ADAPTER, around_linear, called

reading = only("variant", "peft", "peft multiplies the mean of a group by the number of groups")


@implements("qalora.linear", reading)
def linear(x, weight, a, b, bias=None, *, scaling, group, variant="paper"):
    """``peft.tuners.lora.variants.QALoraLinearVariant``."""
    layer = around_linear(weight, bias, "LoraConfig", scaling=scaling, r=a.shape[0])
    layer.lora_variant[ADAPTER], layer.qalora_group_size = QALoraLinearVariant(), {ADAPTER: group}
    return called(layer, x, weight, bias, lora_A=a, lora_B=b)
