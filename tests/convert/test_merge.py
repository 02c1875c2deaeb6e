"""``refpeft merge``: every merged weight is the exact sum, rounded; the rest is as it was, and nothing is left to compute."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from small_models import save, shaken

from refpeft.cli import main
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.methods import IA3, LoRA, PTuningV2
from refpeft.methods.dora import DoRA
from refpeft.models import load, load_classifier

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))


def run(*arguments):
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


def adapter(folder, method, sites=(("layers.0.attn.q", 32, 32), ("layers.1.mlp.down", 32, 48))):
    """A random one."""
    random, arrays = np.random.default_rng(1), {}
    for site, o, i in sites:
        arrays[site] = {"a": random.normal(size=(2, i)), "b": random.normal(size=(o, 2))}
        if isinstance(method, DoRA):
            arrays[site]["magnitude"] = random.uniform(1, 2, o)
        arrays[site] = {n: a.astype(np.float32) for n, a in arrays[site].items()}
    peft.save(folder, Adapter(method, arrays))
    return folder, arrays


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_merged_weight_is_the_exact_sum_rounded(tiny_llama, tmp_path, dtype):
    """In the model's dtype, in rational arithmetic, to bfloat16 by way of float32; the rest is as it was, or rounds."""
    folder, arrays = adapter(tmp_path / "adapter", LoRA(rank=2, alpha=3))
    result = run(
        tiny_llama, "--adapter", folder, "--out", tmp_path / "out", "--json", *(["--dtype", dtype] if dtype else [])
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["merged"] == 2
    kind = np.dtype(ml_dtypes.bfloat16 if dtype else np.float32)
    before, after = (safetensors.scan(f / "model.safetensors") for f in (tiny_llama, tmp_path / "out"))
    adapted = {f"{peft.module_of(site, 'llama')}.weight": given for site, given in arrays.items()}
    assert before.names() == after.names()
    for name in before:
        weight, merged = np.array(before[name]).astype(kind), np.array(after[name])
        assert merged.dtype == kind
        if name not in adapted:
            assert merged.tobytes() == weight.tobytes()
            continue
        a, b = adapted[name]["a"], adapted[name]["b"]
        for o, i in np.random.default_rng(2).integers(0, weight.shape, (200, 2)):
            exact = Fraction(float(weight[o, i])) + Fraction(3, 2) * sum(
                Fraction(float(b[o, k])) * Fraction(float(a[k, i])) for k in range(2)
            )
            step = np.spacing(np.abs(merged[o, i])).astype(np.float64)
            twice_rounded = Fraction(2.0**-15 if dtype else 0)
            assert abs(exact - Fraction(float(merged[o, i]))) * 2 <= Fraction(float(step)) * (1 + twice_rounded)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert dtype is None or dtype in (config.get("dtype"), config.get("torch_dtype"))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_llama / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("method", [LoRA(rank=2, alpha=3), DoRA(rank=2, alpha=3)])
def test_the_merged_model_is_the_adapted_one_and_peft_merges_alike(tiny_llama, tmp_path, method):
    """Logits to the rounding of the weights to float32; peft's own merge is as near."""
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    folder, arrays = adapter(tmp_path / "adapter", method)
    assert run(tiny_llama, "--adapter", folder, "--out", tmp_path / "out").exit_code == 0
    model = load(tiny_llama, dtype="float64", backend="reference")
    model.attach(",".join(arrays), method, arrays=arrays)
    merged = load(tmp_path / "out", dtype="float64", backend="reference")
    plain = {layer.operation for layer in load(tiny_llama).sites.values()}
    assert {layer.operation for layer in merged.sites.values()} == plain
    np.testing.assert_allclose(merged.logits(IDS), model.logits(IDS), rtol=0, atol=2.0**-20)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    theirs.PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, other = (safetensors.scan(f / "model.safetensors") for f in (tmp_path / "out", tmp_path / "peft"))
    for name in ours:
        np.testing.assert_allclose(np.array(ours[name]), np.array(other[name]), rtol=2.0**-20, atol=2.0**-20)


def test_a_bias_that_a_method_scales_is_merged(tmp_path):
    """IA3's scale acts on outputs, and in Qwen2 biases are part of them; peft's own merge is as near."""
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = transformers.Qwen2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    base, random = save(config, tmp_path / "base"), np.random.default_rng(1)
    arrays = {f"layers.0.attn.{m}": {"scale": random.uniform(0.5, 2, 16).astype(np.float32)} for m in "kv"}
    peft.save(tmp_path / "adapter", Adapter(IA3(), arrays))
    assert run(base, "--adapter", tmp_path / "adapter", "--out", tmp_path / "out").exit_code == 0
    model = load(base, dtype="float64", backend="reference")
    model.attach(",".join(arrays), IA3(), arrays=arrays)
    merged = load(tmp_path / "out", dtype="float64", backend="reference")
    np.testing.assert_allclose(merged.logits(IDS % 97), model.logits(IDS % 97), rtol=0, atol=2.0**-16)
    whole = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs.PeftModel.from_pretrained(whole, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, other = (safetensors.scan(f / "model.safetensors") for f in (tmp_path / "out", tmp_path / "peft"))
    for name in ours:
        np.testing.assert_allclose(np.array(ours[name]), np.array(other[name]), rtol=2.0**-20, atol=2.0**-20)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Random encoders of one configuration: as pretrained, bare, without a pooler, and with a classifier of two labels."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=24,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoders")
    save(config, folder / "pretrained", "AutoModelForPreTraining")
    save(config, folder / "bare", "AutoModel")
    save(config, folder / "classifier", "AutoModelForSequenceClassification")
    body = transformers.BertModel.from_pretrained(folder / "classifier", add_pooling_layer=False)
    body.save_pretrained(folder / "body")
    return folder


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    ("base", "labels", "train"),
    [
        ("pretrained", ("no", "perhaps", "yes"), ("classifier",)),
        ("bare", ("no", "yes"), ("classifier",)),
        ("body", (), ("pooler", "classifier")),
        ("classifier", (), ("pooler",)),
        ("classifier", ("no", "yes"), ("classifier",)),
    ],
)
def test_a_head_is_merged_and_transformers_loads_all_of_it(encoders, tmp_path, base, labels, train, dtype):
    """With the adapted model's logits, peft's own merged model's too, and the labels' names."""
    transformers, theirs = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch, random, method = pytest.importorskip("torch"), np.random.default_rng(1), LoRA(rank=2, alpha=3)
    count = len(labels) or 2
    how = {"labels": 0 if base == "classifier" else count, "train": train}
    model = load_classifier(encoders / base, **how, random=random, dtype="float64", backend="reference")
    model.attach("*.q,*.down", method, random)
    shaken(model, random)
    for array in model.trained.values():
        array[...] = array.astype(np.float32)
    head = {site: {n: a.astype(np.float32) for n, a in its.items()} for site, its in model.head.items()}
    arrays = {site: {n: a.astype(np.float32) for n, a in its.items()} for site, its in model.arrays().items()}
    made = Adapter(method, arrays, family="bert", head=head, labels=labels)
    adapters.save(tmp_path / "adapter", made)
    more = ["--dtype", dtype] if dtype else []
    result = run(encoders / base, "--adapter", tmp_path / "adapter", "--out", tmp_path / "out", *more)
    assert result.exit_code == 0, result.output
    whole, said = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(said.values())
    assert tuple(whole.config.id2label.values()) == (labels or tuple(f"LABEL_{i}" for i in range(count)))
    ids = IDS % 97
    with torch.no_grad():
        got = whole.eval()(input_ids=torch.from_numpy(ids)).logits.numpy()
    expected, size = model.logits(ids), np.abs(model.logits(ids)).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=size * 2.0 ** (-3 if dtype else -16))
    assert (tmp_path / "adapter" / "adapter_config.json").exists() == ("classifier" in train)
    if dtype or "classifier" not in train:
        return
    other = transformers.AutoModelForSequenceClassification.from_pretrained(encoders / base, num_labels=count)
    merged = theirs.PeftModel.from_pretrained(other, tmp_path / "adapter").merge_and_unload().eval()
    for (name, ours), (same, its) in zip(whole.state_dict().items(), merged.state_dict().items(), strict=True):
        assert name == same
        np.testing.assert_allclose(ours.numpy(), its.numpy(), rtol=2.0**-20, atol=2.0**-20)


def test_a_head_that_does_not_fit_is_refused_and_leaves_nothing(encoders, tmp_path):
    """One of other labels, one whose pooler is nowhere, one with an element that the dtype has not."""
    arrays = {"layers.0.attn.q": {"a": np.ones((2, 32), np.float32), "b": np.ones((32, 2), np.float32)}}
    for name, count, value in (("three", 3, 1.0), ("two", 2, 1.0), ("huge", 2, 1e6)):
        head = {"classifier": {"weight": np.full((count, 32), value), "bias": np.ones(count)}}
        adapters.save(tmp_path / name, Adapter(LoRA(rank=2), arrays, family="bert", head=head))
    there = sorted(os.listdir(tmp_path))
    for base, name, said in (
        ("classifier", "three", "The model's classifier.weight has shape (2, 32), but the adapter's has (3, 32)."),
        ("body", "two", "The adapter's head lacks the pooler, which the model does not have either."),
        ("bare", "huge", "Merged, tensor classifier.weight has an element that is not finite in float16."),
    ):
        result = run(encoders / base, "--adapter", tmp_path / name, "--out", tmp_path / "out", "--dtype", "float16")
        assert (result.exit_code, result.stderr) == (2, f"refpeft: {said}\n")
        assert sorted(os.listdir(tmp_path)) == there


def test_what_cannot_be_merged_is_said_and_leaves_nothing(tiny_llama, tmp_path):
    """A site that the model lacks, one of another shape, a sum beyond the dtype, a folder that is there, a dtype that is not."""
    missing, _ = adapter(tmp_path / "missing", LoRA(rank=2), [("layers.9.attn.q", 32, 32)])
    other, _ = adapter(tmp_path / "other", LoRA(rank=2), [("layers.0.attn.q", 32, 31)])
    good, arrays = adapter(tmp_path / "good", LoRA(rank=2))
    huge = {site: {n: a * np.float32(2.0**20) for n, a in given.items()} for site, given in arrays.items()}
    peft.save(tmp_path / "huge", Adapter(LoRA(rank=2), huge))
    prefix = {"prefix_k": np.ones((2, 3, 8)), "prefix_v": np.ones((2, 3, 8))}
    sites = {f"layers.{i}.attention": prefix for i in range(2)}
    peft.save(tmp_path / "prefix", Adapter(PTuningV2(tokens=3, size=8), sites))
    head = {"classifier": {"weight": np.ones((2, 32)), "bias": np.ones(2)}}
    peft.save(tmp_path / "head", Adapter(LoRA(rank=2), arrays, family="bert", head=head))
    there, out = sorted(os.listdir(tmp_path)), ("--out", tmp_path / "out")
    for arguments, said in (
        (
            ["--adapter", missing, *out],
            "a tensor 'model.layers.9.self_attn.q_proj.weight', which the model does not have.",
        ),
        (["--adapter", other, *out], "lora.merge"),
        (["--adapter", tmp_path / "prefix", *out], "PTuningV2 cannot be merged: its keys enter a softmax"),
        (
            ["--adapter", tmp_path / "head", *out],
            "has a classifier's head, but the model is no encoder of BERT's kind.",
        ),
        (["--adapter", tmp_path / "huge", *out, "--dtype", "float16"], "has an element that is not finite in float16."),
        (["--adapter", good, "--out", tmp_path / "good"], "exists already, expected the name of a new folder."),
        (
            ["--adapter", good, *out, "--dtype", "int8"],
            "dtype must be one of float32, bfloat16, float16, but 'int8' came.",
        ),
    ):
        result = run(tiny_llama, *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert said in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == there
