"""adapters: in a Stack, of parallel adapters only the last acts, and LoRA is fed with LoRA in place of the layer's input."""

import adapters
import torch
from adapters.composition import Stack
from transformers import BertConfig, BertModel

ids = torch.arange(4).unsqueeze(0)


def model(config):
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    adapters.init(bert)
    for name in ("first", "second"):
        bert.add_adapter(name, config=config)
    for name, tensor in bert.named_parameters():
        if "lora_" in name or "adapter_up" in name:
            torch.nn.init.normal_(tensor)
    return bert.eval()


bert, ys = model("par_bn"), {}
for name, setup in {"second": "second", "both": Stack("first", "second")}.items():
    bert.set_active_adapters(setup)
    ys[name] = bert(ids).last_hidden_state
print(f"parallel: the stack is off the second alone by {(ys['both'] - ys['second']).abs().max():.0e}")

bert = model(adapters.LoRAConfig(r=2, alpha=2))
bert.set_active_adapters(Stack("first", "second"))
layer, x = bert.encoder.layer[0].attention.self.value, torch.randn(1, 3, 8)
first, second = layer.loras["first"].delta_w, layer.loras["second"].delta_w
plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
print(f"LoRA: the layer is off x Wᵀ + (x D1ᵀ) D2ᵀ by {(layer(x) - plain - x @ first.T @ second.T).abs().max():.0e}")
bert = model(adapters.LoRAConfig(r=2, selfattn_lora=False, intermediate_lora=True))
bert.set_active_adapters(Stack("first", "second"))
try:
    bert(ids)
except RuntimeError as error:
    print("LoRA, 8 inputs and 16 outputs:", error)
