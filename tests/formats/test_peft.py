"""Adapters exchanged with peft, both ways: same logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import save, shaken

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import adapters, safetensors
from refpeft.formats import peft as files
from refpeft.methods import (
    BEFT,
    BOFT,
    C3A,
    CPT,
    DEFT,
    HRA,
    IA3,
    OFT,
    OSF,
    AdaLoRA,
    AdaptionPrompt,
    BatMiSS,
    Cartridge,
    DeLoRA,
    DenseLoKr,
    DoRA,
    FourierFT,
    GLoRA,
    GraLoRA,
    HiRA,
    HRAGramSchmidt,
    LoHa,
    LoKr,
    LoRA,
    LowRankLoKr,
    MiSS,
    MultitaskPromptTuning,
    PaRa,
    PEANuT,
    Poly,
    PromptTuning,
    PTuningV2,
    PVeRA,
    RandLoRA,
    RoAd,
    RsLoRA,
    SHiRA,
    Supertuning,
    Supra,
    TinyLoRA,
    TrainableTokens,
    UniLoRA,
    VBLoRA,
    VeRA,
    WaveFT,
)
from refpeft.models import load

METHODS = [
    LoRA(rank=2, alpha=6),
    RsLoRA(rank=2, alpha=6),
    DoRA(rank=2, alpha=6),
    LoHa(rank=2, alpha=6),
    IA3(),
    HRA(rank=2),
    HRAGramSchmidt(rank=2),
    HiRA(rank=2),
    RoAd(group=8),
    C3A(block=8),
    OFT(block=8, variant="neumann"),
    OFT(block=8, variant="peft", share=True),
    MiSS(rank=4),
    BatMiSS(rank=8),
    DeLoRA(rank=2),
    AdaLoRA(rank=2, alpha=6, variant="peft"),
    LoKr(rank=3, alpha=6),
    DenseLoKr(rank=4, alpha=6, factor=8),
    LowRankLoKr(rank=1, alpha=6),
    BOFT(block=4, factors=1, variant="peft"),
    BEFT(),
    DEFT(rank=2, alpha=6),
    PaRa(rank=2),
    GLoRA(rank=2),
    GraLoRA(rank=4, alpha=6),
    GraLoRA(rank=4, alpha=6, hybrid=2),
    PEANuT(rank=4, scaling=0.5),
    SHiRA(rank=1),
    SHiRA(rank=3, mask="magnitude"),
    Supertuning(sparsity=0.9),
    Supra(sparsity=0.9, rank=2, alpha=6, largest=False),
    FourierFT(frequencies=40, start="zero"),
    FourierFT(frequencies=512, seed=3),
    WaveFT(coefficients=100, wavelet="coif3", seed=2**40 + 1),
    TrainableTokens(tokens=(61, 3, 70)),
    VeRA(rank=3, start=0.5),
    PVeRA(rank=3),
    RandLoRA(rank=3, alpha=6, variant="peft"),
    TinyLoRA(rank=3, numbers=5),
    VBLoRA(rank=2, bank=6, length=8, chosen=3),
    UniLoRA(rank=2, length=50, seed=5),
    Poly(rank=2, skills=3, heads=4, tasks=2),
    MultitaskPromptTuning(tokens=3, tasks=2, rank=2),
    AdaptionPrompt(tokens=3, adapted=1, gates="layer"),
    AdaptionPrompt(tokens=3, adapted=2, gates="layer"),
    OSF(preserved=0.7),
    OSF(preserved=9),
    PromptTuning(tokens=3),
    PTuningV2(tokens=3, size=8),
    Cartridge(tokens=3, size=8, frozen=2),
]
SITES = ("layers.0.attn.q", "layers.1.attn.v", "layers.1.mlp.down")
IDS, TASKS = np.random.default_rng(0).integers(0, 97, (2, 9)), np.array([1, 0])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama that transformers saved."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return save(config, tmp_path_factory.mktemp("base"))


def drawn(base, method) -> files.Adapter:
    """An adapter off its start, where the method stands."""
    random, model = np.random.default_rng(1), load(base)
    linear = method.operation.endswith(".linear")
    model.attach(",".join(SITES) if linear else "*", method, random)
    return files.Adapter(method, shaken(model, random).arrays())


def ours(base, adapter) -> np.ndarray:
    model = load(base)
    model.attach(adapter.pattern, adapter.method, arrays=adapter.arrays)
    return model.logits(IDS, tasks=TASKS).numpy()


def theirs(base, folder):
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder)
    ids, tasks = torch.from_numpy(IDS), torch.from_numpy(TASKS)
    return model, model(ids, task_ids=tasks).logits.detach().numpy()[:, -IDS.shape[1] :]


@pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA extension|Setting boft_n_butterfly_factor|.*has no bias term|Sparse invariant checks"
)
@pytest.mark.filterwarnings(r"ignore:Found missing adapter keys while loading the checkpoint. .'base_model.+randlora_A")
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_peft_and_refpeft_load_what_the_other_wrote(base, method, tmp_path):
    """Every tensor has its place in peft, the logits are equal to float32's rounding, and peft's own file reads back equal."""
    adapter = drawn(base, method)
    files.save(tmp_path / "ours", adapter, base=str(base))
    model, logits = theirs(base, tmp_path / "ours")
    np.testing.assert_allclose(ours(base, adapter), logits, rtol=0, atol=2.0**-15 * np.abs(logits).max())
    assert np.abs(logits - load(base).logits(IDS).numpy()).max() > 0.1
    model.save_pretrained(tmp_path / "theirs")
    again = files.load(tmp_path / "theirs")
    assert again.method == method
    assert {s: set(a) for s, a in again.arrays.items()} == {s: set(a) for s, a in adapter.arrays.items()}
    for site, arrays in adapter.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)


def test_of_cpt_the_moved_context_is_exchanged(base, tmp_path):
    """peft's file has no more; ids and types are kept, what was moved is within its ball, and another number is refused."""
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    adapter = drawn(base, CPT(tokens=3, epsilon=2.0))
    its = adapter.arrays["prompt"]
    np.testing.assert_allclose(np.linalg.norm(its["delta"], axis=1), 2.0 * (32 / 2048) ** 0.5, rtol=2.0**-20)
    files.save(tmp_path / "ours", adapter, base=str(base))
    model, logits = theirs(base, tmp_path / "ours")
    bound = 2.0**-15 * np.abs(logits).max()
    np.testing.assert_allclose(ours(base, adapter), logits, rtol=0, atol=bound)
    model.save_pretrained(tmp_path / "again")
    again = files.load(tmp_path / "again")
    assert again.method == adapter.method
    np.testing.assert_array_equal(again.arrays["prompt"]["tokens"], its["tokens"] + its["delta"])
    assert not again.arrays["prompt"]["delta"].any()
    encoder = files.Adapter(adapter.method, adapter.arrays, family="bert")
    assert not files.is_written(encoder)
    with pytest.raises(CapabilityError, match="peft has CPT in causal language models only"):
        files.save(tmp_path / "bert", encoder)
    fields = {"cpt_token_ids": [5, 3, 96, 8], "cpt_tokens_type_mask": [1, 2, 3, 4], "task_type": "CAUSAL_LM"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(plain, peft.CPTConfig(**fields)).eval()
    model.prompt_encoder["default"].delta_embedding.weight.data += torch.randn(4, 32)
    logits = model(torch.from_numpy(IDS)).logits.detach().numpy()[:, 4:]
    model.save_pretrained(tmp_path / "theirs")
    adapter = files.load(tmp_path / "theirs")
    assert adapter.config.items() >= fields.items()
    files.save(tmp_path / "kept", adapter)
    np.testing.assert_allclose(theirs(base, tmp_path / "kept")[1], logits, rtol=0, atol=bound)
    np.testing.assert_allclose(ours(base, adapter), logits, rtol=0, atol=bound)
    config = json.loads((tmp_path / "kept" / files.CONFIG).read_text())
    assert config.items() >= fields.items()
    for change, said in (
        ({"cpt_token_ids": [5]}, r"prompt_embeddings has 4 tokens, but cpt_token_ids is \[5\]"),
        ({"opt_projection_format_epsilon": 0}, "opt_projection_format_epsilon must be a positive number, but 0 came"),
    ):
        (tmp_path / "kept" / files.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(FormatError, match=said):
            files.load(tmp_path / "kept")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (LoKr(rank=4), "peft keeps a second factor of side 8 whole at rank 4"),
        (DenseLoKr(rank=3), "peft makes a second factor of side 8 of rank 3"),
        (LowRankLoKr(rank=2), "peft keeps a first factor of side 4 whole at rank 2"),
        (SHiRA(rank=40), "peft refuses rank 40 for 32 by 32 elements"),
        (DEFT(rank=40), "peft scales a subspace of 32 by alpha / 32, not / 40"),
    ],
    ids=repr,
)
def test_of_what_peft_would_make_other_arrays_ours_is_the_only_form(base, method, said, tmp_path):
    """Refused as peft's, and kept as ours."""
    adapter = drawn(base, method)
    with pytest.raises(CapabilityError, match=said):
        files.save(tmp_path, adapter)
    adapters.save(tmp_path, adapter)
    assert adapters.load(tmp_path).method == method


@pytest.mark.parametrize(
    ("method", "field", "read"),
    [
        (DEFT(rank=2, alpha=6), "alpha", DEFT(rank=2, alpha=2)),
        (Supra(sparsity=0.9, rank=2, alpha=6), "lora_alpha", Supra(sparsity=0.9, rank=2, alpha=4)),
    ],
    ids=repr,
)
def test_a_null_is_what_peft_takes_it_for(base, method, field, read, tmp_path):
    """The logits say so."""
    files.save(tmp_path, drawn(base, method), base=str(base))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | {field: None}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    adapter = files.load(tmp_path)
    assert adapter.method == read
    logits = theirs(base, tmp_path)[1]
    np.testing.assert_allclose(ours(base, adapter), logits, rtol=0, atol=2.0**-15 * np.abs(logits).max())


def test_fields_that_change_nothing_are_kept(tmp_path):
    """A configuration read and written again has them all."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    config = json.loads((tmp_path / files.CONFIG).read_text())
    config |= {"revision": "abc", "a_field_of_the_future": None, "lora_dropout": 0.1}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    files.save(tmp_path / "again", files.load(tmp_path))
    assert json.loads((tmp_path / "again" / files.CONFIG).read_text()) == config


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "OTHER"}, CapabilityError, r"peft_type is 'OTHER', but .*C3A, .*, ROAD, .* are read"),
        ({"rank_pattern": {"q_proj": 4}}, FormatError, "q_proj has rank 2, but r and rank_pattern say 4"),
        (
            {"alpha_pattern": {"q_proj": 4}},
            CapabilityError,
            "scale model.layers.0.self_attn.q_proj by 2 and others by 3",
        ),
        (
            {"init_lora_weights": "pissa_niter_4"},
            CapabilityError,
            'is "pissa_niter_4", so that the adapter is for a weight',
        ),
        ({"init_lora_weights": "loftq"}, CapabilityError, "a weight that peft quantised, which is not in the file"),
        (
            {"init_lora_weights": "olora"},
            CapabilityError,
            "writes with path_initial_model_for_weight_conversion is for",
        ),
        ({"fan_in_fan_out": True}, CapabilityError, "fan_in_fan_out is true"),
        ({"bias": "all"}, CapabilityError, 'bias is "all"'),
        ({"a_field_of_the_future": 7}, CapabilityError, "a_field_of_the_future is 7"),
        ({"use_dora": True}, FormatError, "layers.0.attn.q lacks magnitude"),
        (
            {"use_dora": True, "use_rslora": True},
            CapabilityError,
            "LORA with use_dora true, use_rslora true, peft_version null is not read",
        ),
        (
            {"alpha_pattern": {"q": "4"}},
            FormatError,
            "alpha_pattern must give modules positive numbers, but is {'q': '4'}",
        ),
        ({"rank_pattern": {"q_(": 2}}, FormatError, r"rank_pattern must give modules positive numbers, but is {'q_\('"),
        ({"rank_pattern": [2]}, FormatError, r"rank_pattern must give modules positive numbers, but is \[2\]"),
        (
            {"peft_type": "HIRA", "lora_alpha": None, "rank_pattern": {"q": 2}},
            CapabilityError,
            'rank_pattern is {"q": 2}, which is not',
        ),
        ({"peft_type": "PREFIX_TUNING", "r": None}, CapabilityError, "lora_alpha is 6.0, which is not understood"),
        ({"r": "two"}, FormatError, "LoRA: rank must be an integer, but 'two' came"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, change, error, message):
    """By field, never silently."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | change
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        files.load(tmp_path)


def test_a_tensor_that_belongs_nowhere_is_an_error(tmp_path):
    """So is a folder without an adapter, a method that peft's files are not written for, and a site that peft lacks."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 4), np.float32), "b": np.ones((3, 2), np.float32)}}
    files.save(tmp_path, files.Adapter(LoRA(rank=2, alpha=6), arrays))
    tensors = safetensors.load(tmp_path / files.TENSORS).tensors
    safetensors.save(tmp_path / files.TENSORS, dict(tensors) | {"base_model.model.score.weight": np.ones(2)})
    with pytest.raises(
        FormatError, match=r"the tensor 'base_model.model.score.weight' belongs to nothing that LORA has"
    ):
        files.load(tmp_path)
    with pytest.raises(FormatError, match=r"has no adapter_config.json, expected an adapter of peft"):
        files.load(tmp_path / "nothing")
    with pytest.raises(CapabilityError, match=r"peft's files have no place for RandLoRA\(.*variant='paper'"):
        files.save(tmp_path / "randlora", files.Adapter(RandLoRA(), arrays))
    with pytest.raises(CapabilityError, match=r"peft's files have no place for C3A\(.*normalised=False\)"):
        files.save(tmp_path / "c3a", files.Adapter(C3A(normalised=False), arrays))
    with pytest.raises(FormatError, match=r"peft has no module for the site 'head'"):
        files.save(tmp_path / "head", files.Adapter(LoRA(), {"head": arrays["layers.0.attn.q"]}))


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({}, (3, 15), r"prompt_embeddings of shape \(3, 15\) is not a prefix of num_virtual_tokens 3, num_layers 2"),
        ({"num_layers": 0}, (3, 64), "num_layers must be a positive integer, but 0 came"),
        ({"num_attention_heads": 3}, (3, 64), "is not a prefix"),
        ({"token_dim": "16"}, (3, 64), "token_dim must be a positive integer, but '16' came"),
        ({"peft_type": "PROMPT_TUNING"}, (64,), r"must be \(tokens, width\), but has shape \(64,\)"),
    ],
)
def test_a_prefix_of_another_shape_is_refused(tmp_path, change, shape, message):
    """By what the fields say of it."""
    keys = np.ones((2, 3, 8), np.float32)
    arrays = {f"layers.{i}.attention": {"prefix_k": keys, "prefix_v": keys} for i in range(2)}
    files.save(tmp_path, files.Adapter(PTuningV2(tokens=3, size=8), arrays))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | change
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    safetensors.save(tmp_path / files.TENSORS, {"prompt_embeddings": np.ones(shape, np.float32)})
    with pytest.raises(FormatError, match=message):
        files.load(tmp_path)
    safetensors.save(tmp_path / files.TENSORS, {"other": np.ones(shape, np.float32)})
    with pytest.raises(FormatError, match="the tensor prompt_embeddings is expected, alone, but other came"):
        files.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "shapes", "message"),
    [
        (
            {},
            {"prefix_task_cols": (2, 3, 2)},
            r"shapes \(2, 3, 2\) and \(2, 1, 16\) are not of num_tasks 2, num_ranks 1",
        ),
        ({"num_tasks": 3}, {}, "are not of num_tasks 3, num_ranks 1 and prompt_embeddings of shape"),
        ({"num_ranks": None}, {}, "num_ranks must be a positive integer, but None came"),
        (
            {},
            {"prefix_task_rows": None},
            "the tensors prompt_embeddings, prefix_task_cols, prefix_task_rows are expected",
        ),
    ],
)
def test_a_prompt_of_other_tasks_is_refused(tmp_path, change, shapes, message):
    """By what the fields say of it."""
    arrays = {"prompt": np.ones((3, 16)), "u": np.ones((2, 3, 1)), "v": np.ones((2, 1, 16))}
    files.save(tmp_path, files.Adapter(MultitaskPromptTuning(tokens=3, tasks=2), {"prompt": arrays}))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | change
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    tensors = dict(safetensors.load(tmp_path / files.TENSORS).tensors)
    tensors |= {name: np.ones(shape or (1,)) for name, shape in shapes.items()}
    safetensors.save(tmp_path / files.TENSORS, {n: a for n, a in tensors.items() if shapes.get(n, ()) is not None})
    with pytest.raises(FormatError, match=message):
        files.load(tmp_path)


def test_a_router_of_another_size_is_refused(tmp_path):
    """By the method that the fields make it."""
    arrays = {"a": np.ones((1, 2, 4, 3)), "b": np.ones((1, 2, 3, 4)), "logits": np.ones((2, 1, 2))}
    files.save(tmp_path, files.Adapter(Poly(rank=3, skills=2, tasks=2), {"layers.0.attn.q": arrays}))
    config = json.loads((tmp_path / files.CONFIG).read_text()) | {"n_tasks": 3}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"module_logits' of shape \(2, 2\) is no logits of Poly\(.*tasks=3\)"):
        files.load(tmp_path)
