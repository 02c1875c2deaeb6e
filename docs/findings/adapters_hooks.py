"""adapters: through its plug-in interface, every layer's adapter is given the last layer's norm."""

import adapters
import torch
from adapters import AdapterModelInterface
from adapters.methods.modeling import Adapter
from transformers import Gemma2Config, Gemma2Model

torch.manual_seed(0)
gemma = Gemma2Model(
    Gemma2Config(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=16, vocab_size=9,
    )
)  # fmt: skip
interface = AdapterModelInterface(
    adapter_methods=["bottleneck"],
    model_embeddings="embed_tokens",
    model_layers="layers",
    layer_self_attn="self_attn",
    layer_cross_attn=None,
    attn_k_proj="k_proj",
    attn_q_proj="q_proj",
    attn_v_proj="v_proj",
    attn_o_proj="o_proj",
    layer_intermediate_proj="mlp.up_proj",
    layer_output_proj="mlp.down_proj",
    layer_ln_2="post_feedforward_layernorm",
    layer_pre_ffn="pre_feedforward_layernorm",
)
adapters.init(gemma, interface=interface)
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
