"""adapters: DoRA leaves the scale out of the norm and of the merge, scales the base layer's bias, and is not taken out again."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
ids = torch.arange(4).unsqueeze(0)


def model(alpha, bias):
    """BERT with DoRA on queries and values, some steps into training."""
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    adapters.init(bert)
    bert.add_adapter("dora", config=adapters.DoRAConfig(r=2, alpha=alpha))
    bert.set_active_adapters("dora")
    for name, tensor in bert.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(tensor)
        elif name.endswith((".query.bias", ".value.bias")):
            torch.nn.init.constant_(tensor, bias)
    return bert.double().eval()


def layer_of(bert):
    return bert.encoder.layer[0].attention.self.value


for alpha, bias in ((2, 0.0), (8, 0.0), (2, 1.0)):
    layer = layer_of(model(alpha, bias))
    dora, x = layer.loras["dora"], torch.randn(1, 3, 8).double()
    v = layer.weight + dora.scaling * dora.lora_B @ dora.lora_A
    right = x @ (dora.m.weight * v / v.norm(dim=1, keepdim=True)).T + layer.bias
    y, before = layer(x), layer.weight.clone()
    layer.merge_adapter("dora")
    merged = layer(x)
    layer.reset_adapter()
    pairs = (("y", y, right), ("merged", merged, right), ("after reset the weight", layer.weight, before))
    offs = [f"{what} off by {round(float((a - b).abs().max()), 3)}" for what, a, b in pairs]
    print(f"alpha / r = {alpha // 2}, bias {bias:g}: {', '.join(offs)}")

layer = layer_of(model(2, 0.0))
layer.weight.data[0] = layer.loras["dora"].lora_B.data[0] = layer.loras["dora"].m.weight.data[0] = 0
print("a zero row gives", layer(torch.ones(1, 1, 8).double())[0, 0, 0].item())
