"""adapters: Compacter's choice of initialisation is not looked at, and products are rounded to 16 bits."""

import adapters
import torch
from adapters.methods.modeling import PHMLayer
from transformers import BertConfig, BertModel

own = {"shared_phm_rule": False, "factorized_phm_W": False}
for how in ("glorot-uniform", "glorot-normal", "normal"):
    torch.manual_seed(0)
    weights = PHMLayer("phm", 64, 64, "down", adapters.CompacterConfig(hypercomplex_nonlinearity=how, **own)).W
    print(f"{how}: deviation {weights.std():.2f}, largest {weights.abs().max():.2f}")

for options in (
    {"init_weights": "mam_adapter"},
    {"init_weights": "houlsby"},
    {"shared_W_phm": True, "factorized_phm_W": False},
):
    bert = BertModel(
        BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    )
    adapters.init(bert)
    try:
        bert.add_adapter("compacter", config=adapters.CompacterConfig(reduction_factor=4, **options))
    except (AttributeError, UnboundLocalError) as error:
        print(f"{options}: {type(error).__name__}: {error}")

layer = PHMLayer("phm", 2, 2, "down", adapters.CompacterConfig(phm_dim=2, **own)).bfloat16()
layer.phm_rule.data = torch.eye(2, dtype=torch.bfloat16).expand(2, 2, 2) * torch.tensor(
    [[[1.0078125]], [[-1.0]]], dtype=torch.bfloat16
)
layer.W.data = torch.tensor([[[1.0078125]], [[1.015625]]], dtype=torch.bfloat16)
y = layer(torch.ones(1, 2, dtype=torch.bfloat16))
print(f"bfloat16: y must be {1.0078125**2 - 1.015625:.3g}, is {y[0, 0].item():.3g}")
