"""adapters: in Gemma2, and in whatever comes through its plug-in interface, every adapter is given the last layer's norm."""

import adapters
import torch
from adapters.methods.modeling import Adapter
from transformers import Gemma2Config, Gemma2Model

small = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
gemma = Gemma2Model(Gemma2Config(**small, intermediate_size=16, vocab_size=9))
adapters.init(gemma)
gemma.add_adapter("pfeiffer", config="seq_bn")
gemma.set_active_adapters("pfeiffer")

norms = [layer.post_feedforward_layernorm for layer in gemma.layers]
given, original = [], Adapter.pre_forward


def watched(self, hidden_states, input_tensor, layer_norm, **others):
    given.append(norms.index(layer_norm))
    return original(self, hidden_states, input_tensor, layer_norm, **others)


Adapter.pre_forward = watched
gemma(torch.arange(4).unsqueeze(0))
Adapter.pre_forward = original
print("the adapters of layers [0, 1, 2] are given the norms of layers", given)
