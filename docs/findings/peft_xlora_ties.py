"""peft: which of equal gates X-LoRA keeps depends on how many adapters there are; an infinite gate that is not kept is NaN."""

import peft
import torch
from peft.tuners.xlora.classifier import XLoraClassifier
from peft.tuners.xlora.layer import XLoraLayer

how = peft.XLoraConfig(hidden_size=1, adapters={"default": ""}, top_k_lora=1, enable_softmax=False)
layer = XLoraLayer(None, None, None, 0, how)


def kept(gates):
    """What is left of the gates of one token."""
    return layer.get_maybe_topk_scalings(torch.tensor(gates).reshape(1, 1, 1, -1)).reshape(-1)


for count in (2, 4, 8, 16):
    print(f"{count} equal gates: adapter {int(kept([1.0 / count] * count).argmax())} is kept")
for count in (2, 4):
    first = peft.XLoraConfig(hidden_size=1, adapters=dict.fromkeys("0123"[:count], ""), scaling_pass_value=0.5)
    classifier = XLoraClassifier(torch.nn.Linear(1, 1), first, count, 1, torch.device("cpu"))
    gates = classifier.make_dummy_scalings(torch.zeros(1, 1, dtype=torch.int64))
    print(f"first pass of {count} adapters: {kept(gates.flatten().tolist()).tolist()} is kept")
print(f"gates inf and inf: {kept([float('inf')] * 2).tolist()} is kept, must be [inf, 0]")
