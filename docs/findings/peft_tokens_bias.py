"""peft's TrainableTokens around a linear layer leaves the layer's bias out. Run: python peft_tokens_bias.py"""

import peft
import torch

torch.manual_seed(0)
base = torch.nn.Linear(3, 4)
x = torch.randn(2, 3)
before = base(x)
config = peft.TrainableTokensConfig(target_modules=["0"], token_indices=[1])
model = peft.get_peft_model(torch.nn.Sequential(base), config)
started = model(x)
print(f"at the start, y - (x Wᵀ + bias) is -bias: {torch.allclose(started - before, -base.bias.expand(2, 4))}")
merged = model.merge_and_unload()(x)
print(f"merged and unmerged layer agree: {torch.allclose(merged, started)}")
