"""adapters: a prefix of a model with fewer heads for keys than for queries cannot be taken out of its perceptron."""

import adapters
import torch
from transformers import LlamaConfig, LlamaModel

torch.manual_seed(0)
ids = torch.arange(4).unsqueeze(0)
for heads in (2, 1):
    llama = LlamaModel(
        LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=heads,
                    intermediate_size=16, vocab_size=9)
    ).eval()  # fmt: skip
    adapters.init(llama)
    llama.add_adapter("prefix", config="prefix_tuning")
    llama.set_active_adapters("prefix")
    y = llama(ids).last_hidden_state
    try:
        llama.eject_prefix_tuning("prefix")
        print(f"{heads} heads of keys: off by {(llama(ids).last_hidden_state - y).abs().max():.0e}")
    except RuntimeError as error:
        print(f"{heads} heads of keys: {error}")
