"""adapters: Average divides by the number of adapters twice, so that the average of an adapter with itself is half of it."""

import adapters
import torch
from adapters.composition import Average
from transformers import BertConfig, BertModel

torch.manual_seed(0)
for config in ("seq_bn", "lora", "ia3"):
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    adapters.init(bert)
    for name in ("first", "second"):
        bert.add_adapter(name, config=config)
    held = dict(bert.named_parameters())
    for name in held:
        if ".second." in name:
            torch.nn.init.normal_(held[name])
            held[name.replace(".second.", ".first.")].data.copy_(held[name])
    bert.double().eval()
    first = bert.encoder.layer[0].output if config == "seq_bn" else bert.encoder.layer[0].attention.self.value
    x = torch.randn(1, 3, 16 if config == "seq_bn" else 8).double()
    taken = []
    for setup in ("first", Average("first", "second"), Average("first", "second", weights=[1.0, 0.0])):
        bert.set_active_adapters(setup)
        if config == "seq_bn":  # what the adapter gives, with its residual, before the layer norm
            adapter, hidden = first.adapters["first"], first.dense(x)
            state = first.pre_block("first", adapters.methods.bottleneck.BottleneckState(hidden, hidden, hidden, None))
            taken.append(first.compose(first.get_active_setup(), state).hidden_states)
        else:  # what the adapter adds; for (IA)^3, what it multiplies
            plain = torch.nn.functional.linear(x, first.weight, first.bias)
            taken.append(first(x) / plain if config == "ia3" else first(x) - plain)
    print(f"{config}: of the adapter there are {(taken[1] / taken[0]).mean():.3f} in Average('first', 'second'),",
          f"{(taken[2] / taken[0]).mean():.3f} with weights [1, 0]")  # fmt: skip
bert.bfloat16()
y = bert.encoder.layer[0].attention.self.value(torch.ones(1, 1, 8).bfloat16())
print(f"in bfloat16 the layer gives {y.dtype}; its weights are {torch.tensor([1 / 3]).dtype} in float64 too")
