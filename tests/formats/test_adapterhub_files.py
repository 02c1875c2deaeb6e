"""Bottleneck adapters exchanged with AdapterHub, both ways: same logits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import adapterhub as files
from refpeft.formats import adapters, safetensors
from refpeft.formats.lint import lint
from refpeft.formats.peft import CONFIG, Adapter
from refpeft.methods import AdapterPlus, Houlsby, Method, ParallelAdapter, Pfeiffer, ScaledParallelAdapter
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
METHODS: list[tuple[Method, str]] = [
    (Houlsby(reduction=4), "*"),
    (Houlsby(reduction=3, activation="gelu_tanh", scaling=0.5), "layers.*.attn.out"),
    (Pfeiffer(reduction=4), "layers.*.mlp.out"),
    (AdapterPlus(reduction=8), "layers.*.mlp.out"),
    (ParallelAdapter(reduction=4), "*"),
    (ScaledParallelAdapter(reduction=2), "layers.*.mlp.out"),
]
each_method = pytest.mark.parametrize(("method", "pattern"), METHODS, ids=repr)


def drawn(base, method, pattern="*") -> tuple[Adapter, np.ndarray]:
    """An adapter off its start, and the logits with it."""
    random, model = np.random.default_rng(1), load(base, backend="reference")
    model.attach(pattern, method, random)
    for array in model.trained.values():
        array += random.normal(size=array.shape).astype(array.dtype) * np.float32(0.3)
    return Adapter(method, model.arrays()), model.logits(IDS)


def theirs(base):
    """The same model, AdapterHub's."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    library = pytest.importorskip("adapters")
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    library.init(model)
    return model.eval()


def logits(model) -> np.ndarray:
    """What AdapterHub's model says."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


def apart(one, two) -> float:
    """The largest difference over the largest number."""
    return float(np.abs(one - two).max() / np.abs(one).max())


@each_method
def test_adapterhub_computes_the_same_with_what_refpeft_wrote(tiny_llama, tmp_path, method, pattern):
    """To float32 round-off; and without the adapter it does not."""
    adapter, ours = drawn(tiny_llama, method, pattern)
    model = theirs(tiny_llama)
    bare = logits(model)
    adapters.save(tmp_path / "adapter", adapter, base="base")
    report: dict = {}
    model.load_adapter(str(tmp_path / "adapter"), set_active=True, use_safetensors=True, loading_info=report)
    assert report == {"missing_keys": [], "unexpected_keys": []}
    assert apart(ours, logits(model)) < 2.0**-17 < 2.0**-6 < apart(ours, bare)


@each_method
def test_refpeft_computes_the_same_with_what_adapterhub_wrote(tiny_llama, tmp_path, method, pattern):
    """To float32 round-off, fields kept: what is written again, AdapterHub's loader takes as it was."""
    import torch

    model = theirs(tiny_llama)
    files.save(tmp_path / "start", drawn(tiny_llama, method, pattern)[0])
    config = json.loads((tmp_path / "start" / CONFIG).read_text())["config"]
    model.add_adapter("mine", config=config, set_active=True)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".mine." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_adapter(str(tmp_path), "mine", use_safetensors=True)
    found, ours = adapters.load(tmp_path), load(tiny_llama, backend="reference")
    assert found.method == method
    ours.attach(found.pattern, found.method, arrays=found.arrays)
    assert apart(ours.logits(IDS), logits(model)) < 2.0**-17
    files.save(tmp_path / "again", found)
    for name in (CONFIG, files.TENSORS):
        read = json.loads if name == CONFIG else lambda data: safetensors.loads(data).tensors
        one, two = (read((folder / name).read_bytes()) for folder in (tmp_path, tmp_path / "again"))
        assert json.dumps(one, sort_keys=True, default=str) == json.dumps(two, sort_keys=True, default=str)


def test_adapterhub_cannot_save_a_prefix_so(tiny_llama, tmp_path):
    """It has one tensor under several names, which safetensors refuses: MAM has no form in common."""
    model = theirs(tiny_llama)
    model.add_adapter("mine", config=pytest.importorskip("adapters").MAMConfig())
    with pytest.raises(RuntimeError, match="share memory"):
        model.save_adapter(str(tmp_path), "mine", use_safetensors=True)


def test_what_the_form_cannot_say_is_kept_in_refpefts_own(tiny_llama, tmp_path):
    """Adapters at other sites in one layer than in the next, or not from the first layer on."""
    for pattern in ("layers.1.*", "layers.0.attn.out,layers.1.mlp.out"):
        adapter, ours = drawn(tiny_llama, Houlsby(reduction=4), pattern)
        adapters.save(tmp_path / pattern, adapter)
        assert not (tmp_path / pattern / CONFIG).exists()
        found, model = adapters.load(tmp_path / pattern), load(tiny_llama, backend="reference")
        model.attach(found.pattern, found.method, arrays=found.arrays)
        np.testing.assert_array_equal(model.logits(IDS), ours)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"original_ln_after": False}, CapabilityError, "original_ln_after false do not add each part once"),
        ({"ln_before": True}, CapabilityError, "ln_before is true, which is not understood here"),
        (
            {"is_parallel": True, "original_ln_before": True},
            CapabilityError,
            "is_parallel true, original_ln_before true",
        ),
        ({"phm_layer": True}, CapabilityError, "phm_layer is true"),
        ({"inv_adapter": "nice"}, CapabilityError, 'inv_adapter is "nice"'),
        ({"use_gating": True}, CapabilityError, "use_gating is true"),
        ({"non_linearity": "prelu"}, CapabilityError, 'non_linearity is "prelu"'),
        ({"reduction_factor": {"0": 2, "default": 4}}, CapabilityError, "reduction_factor is {"),
        ({"reduction_factor": 0}, FormatError, "reduction must be at least 1, but 0 came"),
        ({"scaling": "learned"}, CapabilityError, 'scaling is "learned"'),
        ({"scaling": "channel"}, CapabilityError, 'scaling is "channel"'),
        ({"something_new": 3}, CapabilityError, "something_new is 3"),
    ],
    ids=str,
)
def test_what_would_be_computed_otherwise_is_refused(tiny_llama, tmp_path, change, error, said):
    """By the field and what it is."""
    files.save(tmp_path, drawn(tiny_llama, Houlsby(reduction=4))[0])
    config = json.loads((tmp_path / CONFIG).read_text())
    config["config"] |= change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(error, match=said):
        files.load(tmp_path)


def test_a_tensor_too_many_or_too_few_is_refused(tiny_llama, tmp_path):
    """And a folder that was saved as a pickle is told how to be saved."""
    adapter, _ = drawn(tiny_llama, Houlsby(reduction=4))
    files.save(tmp_path, adapter)
    tensors = safetensors.load(tmp_path / files.TENSORS).tensors
    first = "model.layers.0.attention_adapters.adapters.refpeft.adapter_up.bias"
    for name, said in (
        (
            "model.layers.0.attention_adapters.adapters.other.adapter_up.bias",
            "belongs to no bottleneck adapter 'refpeft'",
        ),
        ("heads.0.weight", "belongs to no bottleneck adapter"),
    ):
        safetensors.save(tmp_path / files.TENSORS, tensors | {name: tensors[first]})
        with pytest.raises(FormatError, match=said):
            files.load(tmp_path)
    safetensors.save(tmp_path / files.TENSORS, {n: t for n, t in tensors.items() if n != first})
    with pytest.raises(FormatError, match=r"layers\.0\.attn\.out needs down, up, down_bias, up_bias, but"):
        files.load(tmp_path)
    (tmp_path / files.TENSORS).rename(tmp_path / "pytorch_adapter.bin")
    with pytest.raises(
        FormatError, match=r"has no adapter\.safetensors: have AdapterHub save it with use_safetensors=True"
    ):
        files.load(tmp_path)


def test_lint_says_whose_form_it_is_and_what_is_not_read(tiny_llama, tmp_path):
    """A head beside the adapter, a number that is none, a field that refpeft does not understand, another base."""
    adapter, _ = drawn(tiny_llama, Houlsby(reduction=4))
    adapter.arrays["layers.0.attn.out"]["up"][0, 0] = np.nan
    files.save(tmp_path, adapter, base="someone/llama")
    config = json.loads((tmp_path / CONFIG).read_text())
    config["config"]["ln_after"] = True
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / "model_head.safetensors").write_bytes(b"")
    found = {f.where: (f.severity, f.what) for f in lint(tmp_path, "another/gpt", {})}
    assert found[files.TENSORS] == ("note", "is AdapterHub's form, which peft does not read")
    assert found["model_head.safetensors"][0] == "warning"
    assert found["model_name"][1].startswith("is someone/llama")
    assert found["a bottleneck adapter"][1].endswith("ln_after is true, which is not understood here.")
    (tensor,) = (where for where, (_, what) in found.items() if "not finite" in what)
    assert tensor == "model.layers.0.attention_adapters.adapters.refpeft.adapter_up.weight"
