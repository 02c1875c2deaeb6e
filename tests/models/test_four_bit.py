"""A model whose matrices are in 4 bits: transformers' with bitsandbytes, and the model of what they are decoded to."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import save

from refpeft.cli import main
from refpeft.convert.quantise import Settings
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats.four_bit import Quantised, dequantise
from refpeft.memory.decoder import Decoder
from refpeft.methods import methods
from refpeft.models import LanguageModel, load
from refpeft.models.places import place

SHAPE = Decoder(name="tiny", width=16, layers=2, heads=4, kv_heads=2, head_size=4, inner=24, vocabulary=19, tied=True)
IDS = np.random.default_rng(0).integers(0, 19, (2, 9))
OVER = {
    "lora": ("layers.*.attn.q,layers.1.mlp.down", {"rank": 4}),
    "dora": ("layers.*.attn.v", {"rank": 4}),
    "ia3": ("layers.*.attn.k", {}),
    "bitfit": ("layers.0.attn.q", {}),
    "oft": ("layers.1.mlp.up", {"block": 4}),
    "houlsby": ("*", {"reduction": 4}),
    "prefix": ("layers.*.attention", {"tokens": 3, "size": 4, "hidden": 5}),
}


def weights(random, kind: str, double: bool) -> dict:
    """Of a small decoder, the matrices of its blocks in 4 bits."""
    from refpeft.formats.four_bit import quantise

    found = {"embedding": random.normal(size=(19, 16)), "norm": 1 + random.normal(size=16) / 9}
    for i in range(SHAPE.layers):
        found |= {f"layers.{i}.{part}.norm": 1 + random.normal(size=16) / 9 for part in ("attn", "mlp")}
        for m in SHAPE.matrices():
            flat = random.normal(size=m.o * m.i).astype(np.float32) * np.float32(0.3)
            found[f"layers.{i}.{place(m.site)}"] = quantise([flat], (m.o, m.i), kind=kind, double=double)
    return found


def decoded(found: dict) -> dict:
    """The same with what the matrices are decoded to."""
    return {n: dequantise(w).astype(np.float64) if isinstance(w, Quantised) else w for n, w in found.items()}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("name", OVER)
def test_a_method_over_4_bits_is_the_method_over_what_they_are_decoded_to(name, kind):
    """Loss and every gradient in float64, the matrices doubly quantised; where there is a rank, ``qlora.linear`` computes it."""
    found = weights(np.random.default_rng(1), kind, double=True)
    losses, gradients = [], []
    for its in (found, decoded(found)):
        model = LanguageModel(SHAPE, its, eps=1e-5)
        model.attach(OVER[name][0], methods()[name](**OVER[name][1]), np.random.default_rng(2))
        random = np.random.default_rng(3)
        for array in model.trained.values():
            array += 0.3 * random.normal(size=array.shape)
        loss, its_gradients = model.loss(IDS)
        losses.append(loss)
        gradients.append(its_gradients)
    assert losses[0] == pytest.approx(losses[1], rel=2.0**-45)
    assert gradients[0].keys() == gradients[1].keys() != set()
    for n, gradient in gradients[1].items():
        assert np.any(gradient)
        np.testing.assert_allclose(gradients[0][n], gradient, rtol=0, atol=2.0**-40 * np.abs(gradient).max())


def test_the_codes_are_what_is_kept_and_the_layers_are_qloras(monkeypatch):
    """No weight of a block is an array, and a step with LoRA decodes none of them whole."""
    model, called = LanguageModel(SHAPE, weights(np.random.default_rng(1), "nf4", double=True), eps=1e-5), []
    model.attach("layers.*.attn.q", methods()["lora"](rank=2), np.random.default_rng(2))
    plain = model.run.forward
    monkeypatch.setattr(model.run, "forward", lambda name, *a, **k: called.append(name) or plain(name, *a, **k))
    model.loss(IDS)
    assert called.count("qlora.linear") == 7 * SHAPE.layers == called.count("nf4.double_dequantize")
    assert "nn.linear" not in called, "the head's is within the loss"
    assert "nf4.dequantize" not in called


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("fp4", False)])
def test_qlora_is_that_of_transformers_peft_and_bitsandbytes(tmp_path, kind, double):
    """Loss and gradients of A and B at one start, each library quantising the same file by itself: rows of whole blocks, and in
    training, as docs/findings/bitsandbytes-rows.md says.
    """
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    pytest.importorskip("bitsandbytes")
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    saved = save(transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2), tmp_path)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype="float32"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model = load(saved, backend="cpu", quantise=Settings(kind=kind, double=double))
    model.attach("layers.*.attn.q,layers.*.attn.v", methods()["lora"](rank=4, alpha=8), np.random.default_rng(5))
    for n, array in model.trained.items():
        array += np.float32(0.1) * n.endswith("b")
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    theirs.train()
    found = dict(theirs.named_parameters())
    names = {
        f"base_model.model.model.layers.{i}.self_attn.{q}_proj.lora_{a.upper()}.default.weight": f"layers.{i}.attn.{q}.{a}"
        for i in (0, 1)
        for q in "qv"
        for a in "ab"
    }
    assert set(names.values()) == set(model.trained)
    for name, ours in names.items():
        found[name].data.copy_(torch.from_numpy(model.trained[ours]))
    ids = np.random.default_rng(6).integers(0, 97, (2, 12))
    loss, gradients = model.loss(ids)
    expected = theirs(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=2.0**-19)
    for name, ours in names.items():
        gradient = found[name].grad.numpy()
        np.testing.assert_allclose(gradients[ours], gradient, rtol=0, atol=2.0**-15 * np.abs(gradient).max())


def test_a_checkpoint_in_4_bits_stays_in_them_and_is_not_quantised_again(saved_folder, tmp_path):
    """What `refpeft convert` left gives the very loss of the model that is quantised as it is read."""
    ids, out = np.random.default_rng(6).integers(0, 97, (2, 12)), tmp_path / "nf4"
    result = CliRunner().invoke(main, ["convert", str(saved_folder), "--out", str(out), "--double-quant"])
    assert result.exit_code == 0, result.output
    read = load(out, backend="cpu")
    assert read.score(ids) == load(saved_folder, backend="cpu", quantise=Settings(double=True)).score(ids)
    assert read.score(ids) != load(saved_folder, backend="cpu").score(ids)
    with pytest.raises(FormatError, match=r"layers\.0\.attn\.q is in 4 bits already"):
        load(out, quantise=Settings())


def test_a_weight_that_a_method_brings_is_kept_in_4_bits_too():
    """PiSSA's: the arrays that are saved give the same bits; doubly quantised they would not, and are refused."""
    pissa = methods()["pissa"](rank=2)
    model = LanguageModel(SHAPE, weights(np.random.default_rng(1), "nf4", double=False), eps=1e-5)
    plain = model.score(IDS)
    model.attach("layers.*.attn.q", pissa, np.random.default_rng(2))
    assert isinstance(model.sites["layers.0.attn.q"].arrays["weight"].weight, Quantised)
    again = LanguageModel(SHAPE, weights(np.random.default_rng(1), "nf4", double=False), eps=1e-5)
    again.attach("layers.*.attn.q", pissa, arrays=model.arrays())
    assert again.score(IDS) == model.score(IDS) != plain
    double = LanguageModel(SHAPE, weights(np.random.default_rng(1), "nf4", double=True), eps=1e-5)
    with pytest.raises(CapabilityError, match="not doubly quantised"):
        double.attach("layers.*.attn.q", pissa, np.random.default_rng(2))
