"""peft: the adaption prompt's softmax is in float32, also in float64."""

import peft
import torch
import transformers

torch.manual_seed(0)
how = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 4, "vocab_size": 5}
llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=1, **how)).double()
config = peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM")
model = peft.get_peft_model(llama, config).double().eval()
layer = model.base_model.model.model.layers[0].self_attn
layer.adaption_gate.data.fill_(1.0)
with torch.no_grad():
    x = torch.randn(1, 1, 8, dtype=torch.float64)
    nowhere = (torch.ones(1, 1, 4).double(), torch.zeros(1, 1, 4).double())
    added = layer(hidden_states=x, position_embeddings=nowhere, attention_mask=None)[0]
    added -= layer.model(hidden_states=x, position_embeddings=nowhere, attention_mask=None)[0]
    q, k, v = (
        getattr(layer.model, name)(t).view(-1, 2, 4).transpose(0, 1)
        for name, t in (("q_proj", x), ("k_proj", layer.adaption_prompt), ("v_proj", layer.adaption_prompt))
    )
    right = layer.model.o_proj((torch.softmax(q @ k.mT / 2, -1) @ v).transpose(0, 1).flatten(1))
print(f"in float64 what is added is off by {((added[0] - right).abs().max() / right.abs().max()).item():.0e} of it")
