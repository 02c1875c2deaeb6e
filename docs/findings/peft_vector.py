"""peft: QA-LoRA on a single vector, and on activations that are a transposed view, as aLoRA."""

import peft
import torch
from peft.tuners.lora.variants import QALoraLinearVariant


def tried(name, layer, x, **keywords):
    """The shape that the layer gives, or what it raises."""
    try:
        print(f"{name}:", tuple(layer(x, **keywords).shape))
    except (RuntimeError, ValueError) as error:
        print(f"{name}: {type(error).__name__}: {error}")


def around(**options):
    """LoRA's layer around a linear one of eight inputs."""
    config = peft.LoraConfig(target_modules=["0"], r=2, **options)
    return peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 4)), config).eval().base_model.model[0]


qalora, alora = around(), around(alora_invocation_tokens=[1])
qalora.lora_variant["default"], qalora.qalora_group_size = QALoraLinearVariant(), {"default": 2}
qalora.lora_A["default"].weight.data = torch.zeros(2, 4)
x = torch.zeros(3, 5, 8)
for name, layer, more in (("QA-LoRA", qalora, {}), ("aLoRA", alora, {"alora_offsets": [1, 2, 3]})):
    tried(f"{name}, a batch", layer, x, **more)
    tried(f"{name}, a transposed view", layer, torch.zeros(5, 3, 8).transpose(0, 1), **more)
tried("QA-LoRA, a vector", qalora, x[0, 0])
