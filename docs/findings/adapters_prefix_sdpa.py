"""adapters: with a prefix in Llama, a token does not see itself, nor as many tokens before as the prefix has."""

import adapters
import torch
import transformers

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)
weights = {n: 4 * t for n, t in transformers.LlamaForCausalLM(config).state_dict().items()}
ids = torch.arange(9)[None]
changed = ids.clone()
changed[:, 5] = 40

for attention in ("eager", "sdpa"):
    model = transformers.LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(weights)
    adapters.init(model)
    model.add_adapter("prefix", config=adapters.PrefixTuningConfig(flat=True, prefix_length=3), set_active=True)
    with torch.no_grad():
        apart = (model(ids).logits - model(changed).logits).abs().amax((0, 2))
    print(f"{attention}: another token 5 is seen by tokens {torch.nonzero(apart > 1e-6).flatten().tolist()}")
