"""X-LoRA, exchanged with peft: the classifier, and the adapters that it mixes."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from small_models import dropping, shaken, slopes

from refpeft.errors import CapabilityError, FormatError, ShapeError
from refpeft.formats import adapters, peft, peft_mixture, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import LoRA, PromptTuning, RsLoRA, XLoRA
from refpeft.models import load
from refpeft.models.dropout import Dropout

SITES = ("layers.0.attn.q", "layers.1.attn.v", "layers.1.mlp.down")
IDS = np.random.default_rng(0).integers(0, 256, (2, 9))
EXPERTS = (LoRA(rank=2, alpha=6), RsLoRA(rank=3, alpha=2))


@pytest.fixture(scope="module")
def experts(tiny_llama, tmp_path_factory):
    """Two LoRA of other ranks and scalings, the second not at the first's first site, in folders."""
    folder = tmp_path_factory.mktemp("experts")
    for k, method in enumerate(EXPERTS):
        model = load(tiny_llama)
        model.attach(",".join(SITES[k:]), method, np.random.default_rng(k))
        shaken(model, np.random.default_rng(k))
        peft.save(folder / str(k), Adapter(method, model.arrays()), base=str(tiny_llama))
    return folder


@pytest.fixture
def adapter(experts):
    """Both under a classifier off its start."""
    return mixed(experts)


CHOICES = [
    {},
    {"depth": 2, "size": 5},
    {"depth": 3, "size": 6, "layerwise": True},
    {"top": 1},
    {"top": 1, "softmax": False, "layerwise": True},
    {"top": 2, "softmax": False, "renormalised": True, "depth": 2, "size": 3},
    {"first_pass": 0.75, "depth": 2, "size": 3, "classifier_dropout": 0.0},
    {"first_pass": -0.5, "top": 2, "softmax": False, "renormalised": True, "layerwise": True},
]
"""What X-LoRA may be beside a head over all layers."""


def mixed(experts, **choices):
    """Both under a classifier off its start, as it is chosen to be."""
    scaling, arrays = peft_mixture.together([peft.load(experts / str(k)) for k in range(2)])
    method, random = XLoRA(experts=2, temperature=0.7, scaling=scaling, **choices), np.random.default_rng(3)
    classifier = {
        site: {name: random.normal(size=array.shape).astype(np.float32) for name, array in its.items()}
        for site, its in method.layers(random, 32, len(SITES)).items()
    }
    return Adapter(method, classifier | arrays)


def ours(folder, adapter, **options):
    model = load(folder, **options)
    adapters.attach(model, adapter)
    return model


def plain(folder):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False
    return model


@pytest.mark.parametrize("choices", CHOICES, ids=repr)
def test_peft_has_the_logits_and_gradients_of_what_is_written(tiny_llama, experts, tmp_path, choices):
    """Through both passes; and read again it is what it was."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    adapter = mixed(experts, **choices)
    adapters.save(tmp_path, adapter)
    model = ours(tiny_llama, adapter)
    expected, (_, gradients) = model.logits(IDS).numpy(), model.loss(IDS)
    assert np.abs(expected - load(tiny_llama).logits(IDS).numpy()).max() > 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*enable_softmax")
        other = theirs.PeftModel.from_pretrained(plain(tiny_llama), tmp_path, is_trainable=True).eval()
    got = other(input_ids=torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    scores = other(input_ids=torch.from_numpy(IDS[:, :-1])).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, torch.from_numpy(IDS[:, 1:]).flatten()).backward()
    layers = [layer for layer in other.base_model.internal_xlora_classifier.layers if hasattr(layer, "weight")]
    sites = [*(f"gates.{j}" for j in range(adapter.method.depth - 1)), "gates"]
    for site, layer in zip(sites, layers, strict=True):
        for name, part in zip(adapter.arrays[site], (layer.weight, layer.bias), strict=True):
            grad, got = part.grad.numpy(), gradients.pop(f"{site}.{name}").numpy()
            np.testing.assert_allclose(got, grad, rtol=0, atol=2.0**-12 * max(np.abs(grad).max(), 1e-3))
    assert not gradients
    again = adapters.load(tmp_path)
    assert again.method == adapter.method
    for site, its in adapter.arrays.items():
        for name, array in its.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)
    assert {finding.severity for finding in lint(tmp_path)} == {"note"}


def test_peft_trains_under_the_same_dropout(tiny_llama, experts, tmp_path):
    """Of what leaves the classifier's layers and what enters the adapters, in both passes: our masks in the place of torch's."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    adapter = mixed(experts, depth=3, size=6, classifier_dropout=0.4, first_pass=0.75)
    adapters.save(tmp_path, adapter)
    model, dropout = ours(tiny_llama, adapter), Dropout(0.3, seed=3, step=7)
    (loss, gradients), dropped = model.loss(IDS, dropout=dropout), dropout.at(0.0)
    others = [model.loss(IDS)[0], model.loss(IDS, dropout=dropped)[0], loss]
    assert min(abs(a - b) for a, b in zip(others, np.roll(others, 1))) > 2.0**-16 * loss
    other = theirs.PeftModel.from_pretrained(plain(tiny_llama), tmp_path, is_trainable=True).train()
    layers = other.base_model.internal_xlora_classifier.layers
    for j, at in enumerate([2, 5]):
        assert layers[at].p == 0.4
        layers[at] = dropping(dropout, f"gates.{j}", 0.4)

    class Known(torch.nn.Module):
        """Of an adapter at a site, whose masks are those of all adapters there."""

        def __init__(self, site, k):
            super().__init__()
            self.site, self.k, self.places = site, k, iter([f"gates.first.{site}", site])

        def forward(self, x):
            n, s, i = x.shape
            kept = dropout.mask(next(self.places), (n, s, 2, i))[:, :, self.k]
            return x * torch.from_numpy(kept) / (1 - dropout.rate)

    for site in SITES:
        module = other.get_submodule("base_model.lora_model.model." + peft.module_of(site, "llama"))
        for k in module.lora_dropout:
            module.lora_dropout[k] = Known(site, int(k))
    scores = other(input_ids=torch.from_numpy(IDS[:, :-1])).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(scores, torch.from_numpy(IDS[:, 1:]).flatten())
    expected.backward()
    assert abs(loss - expected.item()) < 2.0**-18 * loss
    for site, at in {"gates.0": 0, "gates.1": 3, "gates": 6}.items():
        for name, part in zip(adapter.arrays[site], (layers[at].weight, layers[at].bias), strict=True):
            grad, got = part.grad.numpy(), gradients.pop(f"{site}.{name}").numpy()
            np.testing.assert_allclose(got, grad, rtol=0, atol=2.0**-14 * np.abs(grad).max())
    assert not gradients


@pytest.mark.parametrize(
    "choices",
    [
        {"scaling_pass_value": 1.5},
        {"xlora_depth": 2, "xlora_size": 5},
        {"xlora_depth": 3, "xlora_size": 5, "layerwise_scalings": True},
    ],
    ids=repr,
)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_peft_trained_is_read(tiny_llama, experts, tmp_path, choices, dropout):
    """With the weight of all gates; the classifier from where peft puts it, or, as older versions had it, where it should be."""
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    places = {str(k): str(experts / str(k)) for k in range(2)}
    config = theirs.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=32, adapters=places, global_scaling_weight=0.5, xlora_dropout_p=dropout,
        **choices,
    )  # fmt: skip
    other = theirs.get_peft_model(plain(tiny_llama), config).eval()
    classifier = other.base_model.internal_xlora_classifier
    for parameter in classifier.parameters():
        parameter.data.normal_()
    expected = other(input_ids=torch.from_numpy(IDS)).logits.detach().numpy()
    other.save_pretrained(tmp_path)
    got = ours(tiny_llama, peft.load(tmp_path)).logits(IDS).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-15 * np.abs(expected).max())
    prefix = "base_model.internal_xlora_classifier."
    tensors = {prefix + name: tensor.numpy() for name, tensor in classifier.state_dict().items()}
    safetensors.save(tmp_path / peft.TENSORS, tensors)
    for name in ("0", "1"):
        shutil.rmtree(tmp_path / name)
    np.testing.assert_array_equal(ours(tiny_llama, peft.load(tmp_path)).logits(IDS).numpy(), got)
    safetensors.save(tmp_path / peft.TENSORS, {})
    with pytest.raises(FormatError, match=r"there is no .*classifier\.layers\.0\.bias, expected X-LoRA's classifier"):
        peft.load(tmp_path)


def test_what_was_moved_is_found_beside(tiny_llama, adapter, tmp_path):
    """The paths that peft needs are of the place where it was written."""
    adapters.save(tmp_path / "here", adapter)
    shutil.move(tmp_path / "here", tmp_path / "there")
    read = adapters.load(tmp_path / "there")
    expected = ours(tiny_llama, adapter).logits(IDS).numpy()
    np.testing.assert_array_equal(ours(tiny_llama, read).logits(IDS).numpy(), expected)


@pytest.mark.parametrize("choices", CHOICES, ids=repr)
def test_gradients_are_differences_and_a_cache_keeps_both_passes(tiny_llama, experts, choices):
    """In float64; with checkpointing equal bits, token by token equal logits."""
    adapter, random = mixed(experts, **choices), np.random.default_rng(4)
    model = ours(tiny_llama, adapter, dtype="float64", backend="reference")
    _, gradients = model.loss(IDS)
    again = model.loss(IDS, checkpointing=True)[1]
    assert set(gradients) == set(model.trained) >= {"gates.head", "gates.head_bias"}
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(again[name], gradient)
    slope, difference = slopes(model.trained, gradients, lambda: model.score(IDS), random, h=2.0**-24)
    assert abs(slope - difference) < 1e-4 * abs(slope)
    whole, cache = model.logits(IDS), []
    parts = [model.logits(IDS[:, :4], cache), *(model.logits(IDS[:, i : i + 1], cache) for i in range(4, 9))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-40 * np.abs(whole).max())


def test_the_first_pass_has_the_adapters_under_its_gate(tiny_llama, experts, tmp_path):
    """With a prompt in front and a cache too; where peft leaves it to torch which of them are kept, refpeft's form is written."""
    choices = {"first_pass": 2.0, "top": 1, "layerwise": True}
    model, adapter = load(tiny_llama, dtype="float64", backend="reference"), mixed(experts, **choices)
    adapters.attach(model, adapter)
    model.attach("*", PromptTuning(tokens=3), np.random.default_rng(0))
    whole, cache = model.logits(IDS), []
    parts = [model.logits(IDS[:, :4], cache), *(model.logits(IDS[:, i : i + 1], cache) for i in range(4, 9))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-40 * np.abs(whole).max())
    adapters.attach(model, mixed(experts, **choices | {"first_pass": 0.0}))
    assert np.abs(model.logits(IDS) - whole).max() > 0.01
    with pytest.raises(CapabilityError, match=r"leaves it to torch .* so that its files have no place for XLoRA"):
        peft.save(tmp_path / "theirs", adapter)
    adapters.save(tmp_path / "ours", adapter)
    again = adapters.load(tmp_path / "ours")
    assert (tmp_path / "ours" / adapters.CONFIG).is_file() and again.method == adapter.method
    adapters.attach(model, again)
    np.testing.assert_array_equal(model.logits(IDS), whole)


def test_a_classifier_is_drawn_over_adapters_that_are_given(tiny_llama, adapter):
    """None were: refused, as are more or fewer than the method says, and an encoder."""
    model, its = load(tiny_llama), {site: its for site, its in adapter.arrays.items() if site != "gates"}
    model.attach(",".join(SITES), adapter.method, np.random.default_rng(0), arrays=its)
    assert model.trained["gates.head"].shape == (2, 32)
    with pytest.raises(CapabilityError, match="mixes adapters that were trained before, but none came"):
        model.attach("*", XLoRA(), np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"XLoRA\(experts=3.* as many adapters as it says, but \[2\] came"):
        model.attach(",".join(SITES), XLoRA(experts=3), np.random.default_rng(0), arrays=its)
    with pytest.raises(ShapeError, match=r"gates of XLoRA.* has the arrays .*\(6, 32\).* here, but .*\(2, 32\).* came"):
        model.attach(",".join(SITES), XLoRA(experts=2, layerwise=True), arrays=adapter.arrays)
    with pytest.raises(ShapeError, match=r"arrays for gates\.0, gates are needed, but for gates they came"):
        model.attach(",".join(SITES), XLoRA(experts=2, depth=2, size=3), arrays=adapter.arrays)
    model.attach(",".join(SITES), XLoRA(experts=2, depth=3, size=4), np.random.default_rng(0), arrays=its)
    assert {"gates.0.weight", "gates.1.bias", "gates.head"} <= set(model.trained)
    model.attach(",".join(SITES), adapter.method, arrays=adapter.arrays)
    np.testing.assert_array_equal(model.logits(IDS).numpy(), ours(tiny_llama, adapter).logits(IDS).numpy())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"xlora_depth": 2}, FormatError, r"there is no .*classifier\.layers\.3\.bias, expected X-LoRA's classifier"),
        ({"layerwise_scalings": True}, FormatError, r"weight has shape \(2, 32\), but the fields say \(6, 32\)"),
        ({"enable_softmax": 2}, FormatError, "softmax must be true or false, but 2 came"),
        ({"top_k_lora": 3}, FormatError, "top must be from 0 to the 2 adapters, but 3 came"),
        ({"xlora_depth": 0}, FormatError, "depth must be at least 1, but 0 came"),
        ({"xlora_dropout_p": "x"}, FormatError, "classifier_dropout must be a number, but 'x' came"),
        ({"xlora_dropout_p": 1}, FormatError, "classifier_dropout must be from 0 and below 1, but 1.0 came"),
        ({"scaling_pass_value": "x"}, FormatError, "first_pass must be a number, but 'x' came"),
        (
            {"scaling_pass_value": 0.5, "top_k_lora": 1},
            CapabilityError,
            "with top_k_lora and scaling_pass_value peft leaves it to torch which of the first pass's gates",
        ),
        ({"other": 1}, CapabilityError, "other is 1, which is not understood here"),
        ({"adapters": []}, FormatError, r"adapters must be folders by name, but \[\] came"),
        ({"adapters": {"7": "/nowhere"}}, FormatError, "the adapter '7' lies neither at /nowhere nor beside"),
        ({"adapters": {"0": "."}}, FormatError, r"\(1, 32\)"),
        ({"adapters": {".": "."}}, CapabilityError, "X-LoRA mixes LoRA, but XLORA came"),
        ({"hidden_size": 31}, FormatError, r"has shape \(2, 32\), but the fields say \(2, 31\)"),
        ({"softmax_temperature": 0}, FormatError, "temperature must be above 0, but 0.0 came"),
    ],
)
def test_what_is_not_computed_is_refused(adapter, tmp_path, fields, error, message):
    """In one sentence."""
    adapters.save(tmp_path, adapter)
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps(config | fields))
    with pytest.raises(error, match=message):
        peft.load(tmp_path)
