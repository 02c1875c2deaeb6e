"""adapters: VeRA's two vectors are whole matrices, all of whose elements are trained."""

import adapters
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

torch.manual_seed(0)
ids = torch.arange(4).unsqueeze(0)
bert = BertModel(
    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
)
adapters.init(bert)
bert.add_adapter("vera", config=adapters.VeraConfig(r=4))
bert.train_adapter("vera")
layer = bert.eval().encoder.layer[0].attention.self.value
vera = layer.loras["vera"]
trained = sum(p.numel() for p in vera.parameters() if p.requires_grad)
print(
    f"weight {tuple(layer.weight.shape)}: {layer.weight.numel()} elements, {trained} of VeRA are trained, must be {4 + 16}"
)

step = torch.optim.SGD(vera.parameters(), lr=1.0)
for _ in range(2):
    step.zero_grad()
    bert(ids).last_hidden_state.pow(3).sum().backward()
    step.step()
beside = vera.vera_B.detach() - torch.diag(vera.vera_B.detach().diagonal())
print(f"after two steps the largest element beside vera_B's diagonal is {beside.abs().max():.1g} of the largest on it",
      f"{vera.vera_B.diagonal().abs().max():.1g}")  # fmt: skip

print(f"alpha 8, r 4: the update is scaled by {vera.scaling:g}, which the paper has not")
gpt2 = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
adapters.init(gpt2)
gpt2.add_adapter("vera", config=adapters.VeraConfig(r=4))
gpt2.set_active_adapters("vera")
try:
    gpt2(ids)
except AttributeError as error:
    print("GPT-2:", error)
