"""adapters: AdapterFusion's temperature falls with every call, in evaluation too; and its residual gets into the keys."""

import adapters
import torch
from adapters.methods.modeling import BertFusion

torch.manual_seed(0)
query, adapted = torch.randn(1, 1, 4), torch.randn(1, 1, 2, 4)
residual = torch.randn(1, 1, 4)


def called(fusion):
    """Its output, and the weights of the adapters."""
    z = adapted.clone()
    return fusion(query, z, z, residual.clone(), output_attentions=True)


fusion = BertFusion(adapters.DynamicAdapterFusionConfig(temperature=True), 4, 0.0).eval()
for part in (fusion.query, fusion.key):
    torch.nn.init.eye_(part.weight)
first = called(fusion)[1].ravel()
for _ in range(1000):
    last = called(fusion)[1].ravel()
print(f"in evaluation, the first call: weights {first}; after a thousand: {last}")
print("in what is saved:", [name for name in fusion.state_dict() if "T" in name])

weights = []
for before in (False, True):
    fusion = BertFusion(adapters.DynamicAdapterFusionConfig(residual_before=before), 4, 0.0).eval()
    for part in (fusion.query, fusion.key):
        torch.nn.init.eye_(part.weight)
    z = adapted.clone()
    fusion(query, z, z, residual.clone())
    weights.append((z - adapted).abs().max().item())
print(
    f"what the adapters gave is changed by {weights[0]:.1g}; with residual_before by {weights[1]:.1g}, and the keys are that"
)
