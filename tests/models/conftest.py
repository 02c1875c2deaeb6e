"""Small models that transformers saved."""

from __future__ import annotations

import pytest
from small_models import save


@pytest.fixture(scope="session")
def saved_folder(tmp_path_factory):
    """A random Llama with grouped heads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=5000.0, tie_word_embeddings=False,
    )  # fmt: skip
    return save(config, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def saved(saved_folder):
    """It, and transformers' own, to do with as one likes."""
    transformers = pytest.importorskip("transformers")
    return saved_folder, transformers.AutoModelForCausalLM.from_pretrained(saved_folder).eval()
