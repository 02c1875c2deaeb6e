"""peft: of an encoder-decoder's prefix, layers take each other's keys, cross-attention none, and some are never used."""

import peft
import torch
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
for layers in (1, 2, 3, 4):
    how = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=layers, decoder_start_token_id=0)
    prefix = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(T5ForConditionalGeneration(how), prefix)
    trained, ids = model.prompt_encoder["default"].embedding.weight, torch.tensor([[1, 2, 3, 4]])

    slots = trained.view(3, layers, 2, 2, 4).permute(1, 2, 3, 0, 4)  # layer, key or value, head, token, element
    cache = model.get_prompt(1)
    taken = [
        next(j for j in range(layers) if torch.equal(layer.keys[0], slots[j, 0]))
        for layer in cache.self_attention_cache.layers
    ]
    model(input_ids=ids, labels=ids).loss.backward()
    none = [j for j in range(layers) if not trained.grad.view(3, layers, -1)[:, j].any()]
    print(
        f"layers {layers}: self-attention of layer 0, 1, ... has the prefix of layer {taken}, "
        f"cross-attention {cache.cross_attention_cache.get_seq_length()} tokens; no gradient to layer {none}"
    )
