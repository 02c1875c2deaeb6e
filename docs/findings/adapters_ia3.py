"""adapters: merging (IA)^3 forgets the bias that its forward scales, and a matrix of inputs comes out with three axes."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
bert = BertModel(
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
)
adapters.init(bert)
bert.add_adapter("ia3", config="ia3")
bert.set_active_adapters("ia3")
layer = bert.eval().encoder.layer[0].attention.self.value
layer.loras["ia3"].lora_B.data.fill_(2.0)
for bias in (0.0, 1.0):
    layer.bias.data.fill_(bias)
    x = torch.randn(1, 3, 8)
    y = layer(x)
    layer.merge_adapter("ia3")
    print(f"bias {bias:g}: merged and unmerged layer differ by {(layer(x) - y).abs().max():.1g}")
    layer.reset_adapter()

with torch.no_grad():
    print(f"x {(3, 8)}: y {tuple(layer(x[0]).shape)}; without the adapter {tuple(torch.nn.Linear(8, 8)(x[0]).shape)}")
