"""The block that is one operation against the block that models are made of."""

from __future__ import annotations

import numpy as np

from refpeft import catalogue
from refpeft.memory.decoder import Decoder
from refpeft.models import LanguageModel
from refpeft.models.attention import Shared
from refpeft.models.blocks import block

ORDER = ("attn.norm", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.norm", "mlp.gate", "mlp.up", "mlp.down")
SHAPE = Decoder(
    name="tiny", width=12, layers=1, heads=4, kv_heads=2, head_size=6, inner=10, vocabulary=8, tied=True
)  # fmt: skip


def test_it_is_the_block_of_a_model_bit_for_bit():
    """On the reference in float64, forward and the gradient to x: grouped heads, a batch, tables of real angles."""
    random, whole = np.random.default_rng(0), catalogue()["nn.decoder_block"]
    sizes = {"attn.q": (24, 12), "attn.k": (12, 12), "attn.v": (12, 12), "attn.o": (12, 24), "mlp.down": (12, 10)}
    sizes |= {"mlp.gate": (10, 12), "mlp.up": (10, 12), "attn.norm": (12,), "mlp.norm": (12,)}
    own = {f"layers.0.{name}": random.normal(size=size) for name, size in sizes.items()}
    model = LanguageModel(SHAPE, {"embedding": random.normal(size=(8, 12)), "norm": np.ones(12)} | own, eps=1e-5)
    x, dy = random.normal(size=(2, 2, 5, 12))
    turns = model.turns(0, 5)
    y, vjp = block(model, "layers.0", x, True, Shared(turns))
    arrays = [own[f"layers.0.{name}"] for name in ORDER] + [turns["cos"], turns["sin"]]
    given = {"heads": 4, "kv_heads": 2, "eps": 1e-5}
    np.testing.assert_array_equal(whole(x, *arrays, **given), y)
    np.testing.assert_array_equal(whole.backward(dy, x, *arrays, **given)[0], vjp(dy, {}))
