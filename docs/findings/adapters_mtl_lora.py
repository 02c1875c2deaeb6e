"""adapters: MTL-LoRA cannot have its linear task matrix, is NaN in float16 at the start, and merges into three axes."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)


def layer_of(dtype=torch.float32, **options):
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    adapters.init(bert)
    bert.add_adapter("mtl", config=adapters.MTLLoRAConfig(r=2, **options))
    bert.set_active_adapters("mtl")
    return bert.to(dtype).eval().encoder.layer[0].attention.self.value


try:
    layer_of(task_specific_matrix_type="linear")
except AttributeError as error:
    print("linear:", error)
for dtype in (torch.float32, torch.float16):
    y = layer_of(dtype)(torch.ones(1, 2, 8, dtype=dtype))
    print(f"{dtype}: NaN at the start: {y.isnan().any().item()}")
layer = layer_of()
layer.merge_adapter("mtl")
print("merged weight:", tuple(layer.weight.shape))
