"""peft: the merge of super-tuning into a weight that is a transposed view."""

import peft
import torch

torch.manual_seed(0)
x = torch.randn(3, 8)
for name, weight in (("row-major", torch.randn(6, 8)), ("transposed", torch.randn(8, 6).t())):
    for safe in (False, True):
        base = torch.nn.Linear(8, 6)
        base.weight = torch.nn.Parameter(weight.clone())
        config = peft.SupertuningConfig(target_modules=["0"], sparsity=0.5, r=2)
        layer = peft.get_peft_model(torch.nn.Sequential(base), config).eval().base_model.model[0]
        layer.supertuning_values["default"].data.fill_(1.0)
        before = layer(x)
        layer.merge(safe_merge=safe)
        print(f"{name}, safe_merge {safe}: merged and unmerged layer differ by {(layer(x) - before).abs().max():.2g}")
