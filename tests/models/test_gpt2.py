"""GPT-2's kind: LayerNorm, a table of positions, one matrix for q, k and v. Against transformers and peft, and their files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import by_site, save, shaken

from refpeft.cli import main
from refpeft.convert.quantise import Settings
from refpeft.errors import CapabilityError, DomainError, FormatError
from refpeft.formats import adapters, peft, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.methods import (
    DEFT,
    IA3,
    DoRA,
    DVoRA,
    FourierFT,
    HiRA,
    LayerNormTuning,
    LoRA,
    PromptTuning,
    PTuningV2,
    PVeRA,
    RandLoRA,
    RsLoRA,
    TinyLoRA,
    UniLoRA,
    VeRA,
    WaveFT,
    methods,
)
from refpeft.models import load

IDS = np.random.default_rng(0).integers(0, 97, (2, 9))
EVERYWHERE = "layers.*.attn.qkv,layers.*.attn.o,layers.*.mlp.up,layers.*.mlp.down"
EXCHANGED = [
    DEFT(rank=2, alpha=6),
    LoRA(rank=2, alpha=6),
    RsLoRA(rank=2, alpha=6),
    DoRA(rank=2, alpha=6),
    IA3(),
    HiRA(rank=2),
    FourierFT(frequencies=9),
    WaveFT(coefficients=9, wavelet="db2"),
    VeRA(rank=3),
    PVeRA(rank=3),
    RandLoRA(rank=5, alpha=5, variant="peft"),
    UniLoRA(rank=2, length=40),
    TinyLoRA(rank=3, numbers=2),
]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A random one that transformers saved."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=24, n_inner=48)
    return save(config, tmp_path_factory.mktemp("gpt2"))


def theirs(folder, dtype=None):
    """It, in transformers, without dropout."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).eval()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_logits_are_transformers(gpt2, tmp_path, backend):
    """At every position, in float32 to its rounding; from a file without the head's wrapper, too, whose names have no prefix."""
    torch = pytest.importorskip("torch")
    expected = theirs(gpt2)(torch.from_numpy(IDS)).logits.detach().numpy()
    theirs(gpt2).transformer.save_pretrained(tmp_path)
    assert "h.0.attn.c_attn.weight" in safetensors.scan(tmp_path / "model.safetensors").names()
    for folder in (gpt2, tmp_path):
        model = load(folder, backend=backend)
        np.testing.assert_allclose(
            model.host(model.logits(IDS)), expected, rtol=0, atol=2.0**-17 * np.abs(expected).max()
        )


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft's, of LayerNorm
@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "prompt", "ptuning_v2", "ln_tuning"])
def test_the_loss_and_every_gradient_are_pefts_in_float64(gpt2, tmp_path, name):
    """The same arrays in both, at every matrix or in front; a cache gives the whole's logits, and checkpointing equal bits."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    method = {
        "lora": LoRA(rank=3, alpha=6),
        "dora": DoRA(rank=3, alpha=6),
        "ia3": IA3(),
        "ln_tuning": LayerNormTuning(),
        "prompt": PromptTuning(tokens=3),
        "ptuning_v2": PTuningV2(tokens=3, size=8),
    }[name]
    random, model = np.random.default_rng(1), load(gpt2, dtype="float64", backend="reference")
    model.attach(EVERYWHERE if method.operation.endswith(".linear") else "*", method, random)
    shaken(model, random)
    loss, gradients = model.loss(IDS)
    again, others = model.loss(IDS, checkpointing=True)
    assert again == loss
    for n, gradient in gradients.items():
        np.testing.assert_array_equal(others[n], gradient)
    cache, whole = [], model.logits(IDS)
    parts = [model.logits(IDS[:, start:stop], cache) for start, stop in ((0, 3), (3, 4), (4, 9))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=2.0**-38)

    peft.save(tmp_path, Adapter(method, model.arrays(), family="gpt2"))
    config = hf.PeftConfig.from_pretrained(tmp_path)
    config.inference_mode = False
    other = hf.get_peft_model(theirs(gpt2, torch.float64), config).double()
    hf.set_peft_model_state_dict(other, hf.utils.load_peft_weights(tmp_path))
    ids = torch.from_numpy(IDS)
    labels = torch.where(torch.arange(9) == 0, -100, ids)
    logits = other(input_ids=ids).logits[:, -9:]
    np.testing.assert_allclose(whole, logits.detach().numpy(), rtol=0, atol=2.0**-36)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 97), labels[:, 1:].reshape(-1))
    assert abs(expected.item() - loss) < 2.0**-40
    expected.backward()
    compared = {n.replace(".default", ""): p.grad.numpy() for n, p in other.named_parameters() if p.requires_grad}
    found = Adapter(method, by_site(gradients), family="gpt2")
    peft.save(tmp_path / "gradients", found)
    for n, gradient in safetensors.load(tmp_path / "gradients" / peft.TENSORS).tensors.items():
        n = "prompt_encoder.embedding.weight" if n == "prompt_embeddings" else n
        key = n if n in compared else f"{n}.weight"
        wanted = compared.pop(key)
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2.0**-36 * max(1, np.abs(wanted).max()))
    assert not compared


@pytest.mark.filterwarnings(r"ignore:Found missing adapter keys while loading the checkpoint. .'base_model.+randlora_A")
@pytest.mark.parametrize("method", EXCHANGED, ids=repr)
def test_adapters_are_exchanged_with_peft_and_merged(gpt2, tmp_path, method):
    """Logits are equal in peft; what peft saved reads back equal; merged, transformers computes the same with nothing beside."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    model, ids = load(gpt2), torch.from_numpy(IDS)
    model.attach(EVERYWHERE, method, np.random.default_rng(1))
    shaken(model, np.random.default_rng(2))
    adapter, logits = Adapter(method, model.arrays(), family="gpt2"), model.logits(IDS).numpy()
    adapters.save(tmp_path / "ours", adapter, base=str(gpt2))
    other = hf.PeftModel.from_pretrained(theirs(gpt2), tmp_path / "ours")
    bound = 2.0**-16 * np.abs(logits).max()
    np.testing.assert_allclose(other(ids).logits.detach().numpy(), logits, rtol=0, atol=bound)
    other.save_pretrained(tmp_path / "theirs")
    again = adapters.load(tmp_path / "theirs")
    assert (again.method, again.family) == (method, "gpt2")
    for site, arrays in adapter.arrays.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.arrays[site][name], array)
    lint = CliRunner().invoke(main, ["lint", str(tmp_path / "ours"), "--model", str(gpt2), "--json"])
    assert [f for f in json.loads(lint.stdout) if f["severity"] != "note"] == []
    merge = ["merge", gpt2, "--adapter", tmp_path / "ours", "--out", tmp_path / "merged"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    merged = theirs(tmp_path / "merged")(ids).logits.detach().numpy()
    np.testing.assert_allclose(merged, logits, rtol=0, atol=2 * bound)
    read = load(tmp_path / "merged")
    np.testing.assert_allclose(read.logits(IDS).numpy(), logits, rtol=0, atol=2 * bound)


def test_what_peft_has_not_for_such_matrices_is_kept_in_refpefts_own_form(gpt2, tmp_path):
    """DVoRA, which peft has not, and LoHa, which it puts on linear layers alone; a model of another kind is no place for them."""
    for method in (DVoRA(rank=2), methods()["loha"](rank=2)):
        model, folder = load(gpt2), tmp_path / type(method).__name__
        model.attach("layers.*.attn.qkv", method, np.random.default_rng(1))
        shaken(model, np.random.default_rng(2))
        adapters.save(folder, Adapter(method, model.arrays(), family="gpt2"), base=str(gpt2))
        found, again = adapters.load(folder), load(gpt2)
        assert (folder / adapters.CONFIG).exists()
        assert found.family == "gpt2"
        again.attach(found.pattern, found.method, arrays=found.arrays)
        np.testing.assert_array_equal(again.logits(IDS).numpy(), model.logits(IDS).numpy())
        assert CliRunner().invoke(main, ["lint", str(folder), "--model", str(gpt2)]).exit_code == 0


def test_the_commands_train_evaluate_and_continue_it(gpt2, tiny_llama, tmp_path):
    """c_attn is what is adapted where nothing is said, in 4 bits as well; c_proj is both of that name, as it is for peft."""
    folder = tmp_path / "gpt2"
    shutil.copytree(gpt2, folder)
    shutil.copy(tiny_llama / "tokenizer.json", folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = dict(safetensors.load(folder / "model.safetensors").tensors)
    tensors["transformer.wte.weight"] = np.resize(tensors["transformer.wte.weight"], (256, 32))
    safetensors.save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 256, "eos_token_id": None}))
    (tmp_path / "text.txt").write_text("In the beginning there was a matrix without rank. " * 12)
    options = ("--data", str(tmp_path / "text.txt"), "--sequence", "20", "--json")

    def run(*arguments):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)[0]

    for more in ((), ("--quantize", "nf4", "--targets", "c_attn,c_proj")):
        out = tmp_path / f"run{len(more)}"
        row = run("train", folder, *options, "--out", out, "--steps", 8, "--rank", 2, "--lr", 0.02, *more)
        found = adapters.load(row["adapter"])
        wanted = ("attn.qkv",) if not more else ("attn.qkv", "attn.o", "mlp.down")
        assert set(found.arrays) == {f"layers.{i}.{site}" for i in range(2) for site in wanted}
        plain, adapted = (run("evaluate", folder, *options, *more[:2], *a) for a in ((), ("--adapter", row["adapter"])))
        assert adapted["loss"] < plain["loss"]
        prompt = ("--adapter", f"x={row['adapter']}", "--prompt", "x=In", "--tokens", 6)
        assert run("generate", folder, *prompt, "--json")["tokens"] == 6


def test_a_gguf_file_of_it_is_read(gpt2, tmp_path):
    """With llama.cpp's names, matrices as (o, i): the same logits, and merged it is a folder that transformers loads."""
    torch, gguf = pytest.importorskip("torch"), pytest.importorskip("gguf")
    config, arrays = (
        json.loads((gpt2 / "config.json").read_text()),
        safetensors.load(gpt2 / "model.safetensors").tensors,
    )
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gpt2")
    for name, value in {"block_count": 2, "context_length": 24, "embedding_length": 32, "head_count": 4}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(48)
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    for name, array in arrays.items():
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        writer.add_tensor(table.get_name(name, (".weight", ".bias")), np.array(array.T if turned else array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(load(tmp_path / "a.gguf").logits(IDS), load(gpt2).logits(IDS))
    random = np.random.default_rng(1)
    given = {"layers.0.attn.qkv": {"a": random.normal(size=(2, 32)), "b": np.zeros((96, 2))}}
    peft.save(tmp_path / "adapter", Adapter(LoRA(rank=2), given, family="gpt2"))
    merge = ["merge", tmp_path / "a.gguf", "--adapter", tmp_path / "adapter", "--out", tmp_path / "out"]
    assert CliRunner().invoke(main, [*map(str, merge)]).exit_code == 0
    ids = torch.from_numpy(IDS)
    np.testing.assert_array_equal(theirs(tmp_path / "out")(ids).logits.detach(), theirs(gpt2)(ids).logits.detach())


def test_in_4_bits_it_is_what_bitsandbytes_makes_of_it(tmp_path):
    """Matrices are turned first; the loss, rows of whole blocks, in training and without dropout, as for QLoRA on a Llama."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    save(transformers.GPT2Config(vocab_size=97, n_embd=64, n_layer=1, n_head=4, n_positions=24, **none), tmp_path)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
    )
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    ).train()
    model, ids = load(tmp_path, backend="cpu", quantise=Settings()), torch.from_numpy(IDS)
    assert model.score(IDS) == pytest.approx(other(ids, labels=ids).loss.item(), rel=2.0**-18)
    assert model.score(IDS) != load(tmp_path, backend="cpu").score(IDS)


def test_what_is_not_computed_is_refused(gpt2, tiny_llama, tmp_path):
    """A configuration that means something else, more tokens than there are positions, and an adapter on another family."""
    model = load(gpt2, backend="cpu")
    with pytest.raises(DomainError, match="has positions for 24 tokens, but 25 came"):
        model.logits(np.zeros((1, 25), np.int64))
    model.attach("layers.0.attn.o", LoRA(rank=2), np.random.default_rng(0))
    adapter = Adapter(LoRA(rank=2), model.arrays(), family="gpt2")
    with pytest.raises(FormatError, match=r"is for a model of gpt2's family, but .* is of llama's"):
        adapters.attach(load(tiny_llama), adapter)
    config = json.loads((gpt2 / "config.json").read_text())
    for change, said in (
        (
            {"activation_function": "relu"},
            'activation_function is "relu", but "gelu", "gelu_new", "gelu_pytorch_tanh" is',
        ),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true, but false is computed"),
    ):
        shutil.copytree(gpt2, tmp_path, dirs_exist_ok=True)
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CapabilityError, match=said):
            load(tmp_path)
