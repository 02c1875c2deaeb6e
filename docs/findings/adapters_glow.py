"""adapters: the GLOW coupling block takes tokens for features, and does not run in a model."""

import adapters
import torch
from adapters.methods.modeling import NICECouplingBlock
from transformers import BertConfig, BertModel

torch.manual_seed(0)
x = torch.randn(1, 6, 8)
nice = NICECouplingBlock([[8]])
print(f"NICE: there and back is off by {(nice(nice(x), rev=True) - x).abs().max():.0e}")
bert = BertModel(
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
)
adapters.init(bert)
bert.add_adapter("glow", config=adapters.SeqBnInvConfig(inv_adapter="glow", reduction_factor=2))
bert.set_active_adapters("glow")
try:
    bert(torch.arange(4).unsqueeze(0))
except RuntimeError as error:
    print("GLOW:", error)
