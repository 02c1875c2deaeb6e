"""``refpeft convert``: transformers computes with the result as with its own, and whatever happens nothing is half-done."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.convert.folder import rewrite
from refpeft.convert.quantise import Quantise, Settings
from refpeft.convert.select import selected
from refpeft.convert.source import PIECE, open_model
from refpeft.formats import safetensors
from refpeft.formats.bitsandbytes import decode, dequantise, weights

PROGRAM = (sys.executable, "-c", "from refpeft.cli import main; main()", "convert")


def run(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def tree(path):
    """Every file's bytes by name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def save_model(path, tensors, **config):
    """A Hugging Face folder."""
    path.mkdir()
    safetensors.save(path / "model.safetensors", tensors, {"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "tokenizer.json").write_text("{}")
    return path


def small(count=3, o=24, i=40, dtype=np.float32):
    """A table, a norm, ``count`` matrices and a head."""
    rng = np.random.default_rng(0)
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": rng.normal(size=(o, i)) for n in range(count)}
    tensors |= {"model.embed_tokens.weight": rng.normal(size=(7, i)), "lm_head.weight": rng.normal(size=(7, i))}
    tensors["model.norm.weight"] = rng.normal(size=i)
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()} | {"model.steps": np.arange(3)}


@pytest.mark.parametrize("family", ["llama", "llama, doubly", "gpt2"])
def test_transformers_computes_as_with_its_own_quantisation(family, tmp_path):
    """A random model, sharded: the same 4-bit parameters and the same logits to the bit. (bitsandbytes' CPU kernel needs rows
    of whole blocks. The mean of the maxima may differ in its last bit, as torch's sum does from one CPU to another.)
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes"), pytest.importorskip("accelerate")
    sizes = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    config = {
        "llama": lambda: transformers.LlamaConfig(**sizes, intermediate_size=192, num_key_value_heads=2),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=32),
    }[family.partition(",")[0]]()
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense", max_shard_size="150KB")
    double = "doubly" in family
    result = run(tmp_path / "dense", "--to", "nf4", "--out", tmp_path / "nf4", *(["--double-quant"] if double else []))
    assert result.exit_code == 0, result.stderr
    theirs = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    options = {"dtype": torch.float32, "device_map": "cpu"}
    load = transformers.AutoModelForCausalLM.from_pretrained
    expected, got = load(tmp_path / "dense", quantization_config=theirs, **options), load(tmp_path / "nf4", **options)
    parameters = dict(got.named_parameters())
    for name, parameter in expected.named_parameters():
        assert type(parameters[name]) is type(parameter)
        assert torch.equal(parameters[name].data, parameter.data), name
        if double and hasattr(parameter, "quant_state"):
            ours, own = parameters[name].quant_state, parameter.quant_state
            assert torch.equal(ours.absmax, own.absmax)
            assert torch.allclose(ours.offset, own.offset, rtol=2.0**-23, atol=0)
            own.offset, own.state2.absmax = ours.offset, ours.state2.absmax
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(got(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("double", [False, True])
def test_everything_else_is_kept_as_it_was(tmp_path, dtype, double):
    """Tables, norms, heads and integers bit for bit, files beside the weights too; matrices are within half a step."""
    tensors = small(dtype=dtype)
    model = save_model(tmp_path / "dense", tensors, dtype="bfloat16")
    result = run(model, "--out", tmp_path / "nf4", "--json", *(["--double-quant"] if double else []))
    assert result.exit_code == 0, result.stderr
    written = safetensors.load(tmp_path / "nf4" / "model.safetensors")
    quantised = weights(written.tensors)
    assert sorted(quantised) == [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]
    for name, tensor in tensors.items():
        if name not in quantised:
            assert written.tensors[name].tobytes() == tensor.tobytes()
            assert written.tensors[name].dtype == tensor.dtype
            continue
        found = dequantise(decode(name, written.tensors))
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        apart = np.abs(found.astype(np.float64) - tensor.astype(np.float64)).reshape(-1, 64)
        assert np.all(apart <= 0.16 * np.abs(tensor.astype(np.float64)).reshape(apart.shape).max(1, keepdims=True))
    assert (tmp_path / "nf4" / "tokenizer.json").read_text() == "{}"
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config["dtype"] == config["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is double
    assert config["quantization_config"]["llm_int8_skip_modules"] == ["lm_head", "model.embed_tokens"]
    row = json.loads(result.stdout)[0]
    assert (row["tensors"], row["quantised"], row["resumed"]) == (len(tensors), 3, 0)


def test_patterns_choose_what_is_quantised(tmp_path):
    """``--quantise`` and ``--keep`` in place of the usual patterns; transformers is told what stayed dense."""
    model = save_model(tmp_path / "dense", small())
    assert (
        run(model, "--out", tmp_path / "a", "--quantise", "*.1.*", "--quantise", "lm_*", "--keep", "*norm*").exit_code
        == 0
    )
    written = safetensors.load(tmp_path / "a" / "model.safetensors").tensors
    assert sorted(weights(written)) == ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    skipped = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert {"model.layers.0.mlp.up_proj", "model.embed_tokens"} < set(skipped)


def test_a_dtype_rounds_everything_first(tmp_path):
    """As transformers does when it loads a model in that dtype: the codes are those of the rounded weights."""
    tensors = small()
    model = save_model(tmp_path / "dense", tensors)
    rounded = {n: t.astype(ml_dtypes.bfloat16) if t.dtype == np.float32 else t for n, t in tensors.items()}
    assert run(model, "--out", tmp_path / "a", "--dtype", "bfloat16").exit_code == 0
    assert run(save_model(tmp_path / "bf16", rounded), "--out", tmp_path / "b").exit_code == 0
    a, b = (tree(tmp_path / name)["model.safetensors"] for name in "ab")
    assert a == b


def test_a_lone_file_has_no_configuration(tmp_path):
    """One safetensors file in, one out."""
    safetensors.save(tmp_path / "w.safetensors", small())
    assert run(tmp_path / "w.safetensors", "--out", tmp_path / "a").exit_code == 0
    assert os.listdir(tmp_path / "a") == ["model.safetensors"]


def test_pieces_and_shards_do_not_change_the_numbers(tmp_path):
    """A matrix of several pieces, none of whole blocks, is as if it came whole; shards hold the same tensors as one file."""
    o = 3 * PIECE // 321
    model = save_model(tmp_path / "dense", small(count=2, o=o, i=321))
    sharded = ("--shard", "1MB")
    assert run(model, "--out", tmp_path / "a").exit_code == 0
    assert (
        run(save_model(tmp_path / "more", small(count=40, o=64, i=1024)), "--out", tmp_path / "b", *sharded).exit_code
        == 0
    )
    written = safetensors.load(tmp_path / "a" / "model.safetensors").tensors
    from refpeft.formats.bitsandbytes import encode, quantise

    name = "model.layers.1.mlp.up_proj.weight"
    weight = small(count=2, o=o, i=321)[name]
    for part, tensor in encode(name, quantise([weight.reshape(-1)], weight.shape)).items():
        assert tensor.tobytes() == written[part].tobytes()
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    files = {f: safetensors.load(tmp_path / "b" / f).tensors for f in set(index["weight_map"].values())}
    assert len(files) == 2
    assert {n: f for f, tensors in files.items() for n in tensors} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in files.values() for t in tensors.values())


def save_gguf(path, tensors, architecture="llama", **more):
    """A GGUF file of two blocks of width 24 with four heads over two, by the official writer; ``more`` are texts."""
    writer = pytest.importorskip("gguf").GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, text in more.items():
        writer.add_string(f"{architecture}.{key.replace('__', '.')}", text)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TABLE = {"token_embd.weight": np.ones((97, 24), np.float32)}
GGUF = {
    "another architecture": (
        TABLE,
        {"architecture": "mistral"},
        "general.architecture is 'mistral', expected one of llama, qwen2, gpt2",
    ),
    "scaled positions": (TABLE, {"rope__scaling__type": "yarn"}, "its rotary positions are scaled ('yarn')"),
    "a number that is text": (
        TABLE,
        {"rope__freq_base": "x"},
        "rope.freq_base must be a finite number, 0 or more, got 'x'",
    ),
    "a tensor of no place": (
        TABLE | {"rope_freqs.weight": np.ones(3, np.float32)},
        {},
        "'rope_freqs.weight' has no place",
    ),
    "heads of other sizes": (
        TABLE | {"blk.0.attn_q.weight": np.ones((20, 24), np.float32)},
        {},
        "must have 4 heads of 6",
    ),
    "a bias of heads": (TABLE | {"blk.0.attn_q.bias": np.ones(24, np.float32)}, {}, "order of a bias's elements"),
    "no table": ({"output_norm.weight": np.ones(24, np.float32)}, {}, "there is no tensor token_embd.weight"),
}


@pytest.mark.parametrize("what", GGUF)
def test_gguf_files_that_are_not_converted_are_refused(tmp_path, what):
    """What would come out wrong is not guessed."""
    tensors, more, said = GGUF[what]
    save_gguf(tmp_path / "a.gguf", tensors, **more)
    refused(run(tmp_path / "a.gguf", "--out", tmp_path / "a"), said, left=["a.gguf"], folder=tmp_path)


def test_a_gguf_file_becomes_what_transformers_loads(tmp_path):
    """Names, the rows of each head, the configuration: from GGUF and from transformers' own order the result is the same."""
    rng = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (24, 24),
        "self_attn.k_proj": (12, 24),
        "self_attn.v_proj": (12, 24),
        "self_attn.o_proj": (24, 24),
        "mlp.gate_proj": (40, 24),
        "mlp.up_proj": (40, 24),
        "mlp.down_proj": (24, 40),
    }
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    dense = {
        "model.embed_tokens.weight": ("token_embd.weight", (97, 24)),
        "model.norm.weight": ("output_norm.weight", (24,)),
    }
    for n in range(2):
        dense |= {
            f"model.layers.{n}.{new}.weight": (f"blk.{n}.{old}.weight", shapes[new]) for new, old in zip(shapes, names)
        }
        dense[f"model.layers.{n}.input_layernorm.weight"] = (f"blk.{n}.attn_norm.weight", (24,))
        dense[f"model.layers.{n}.post_attention_layernorm.weight"] = (f"blk.{n}.ffn_norm.weight", (24,))
    tensors = {new: rng.normal(size=shape).astype(np.float32) for new, (_, shape) in dense.items()}

    def interleaved(weight):
        """What llama.cpp's converter does with q and k."""
        return weight.reshape(-1, 2, 3, 24).swapaxes(1, 2).reshape(weight.shape)

    old = {o: tensors[new] for new, (o, _) in dense.items()}
    save_gguf(tmp_path / "a.gguf", {o: interleaved(t) if "attn_q" in o or "attn_k" in o else t for o, t in old.items()})
    assert run(tmp_path / "a.gguf", "--out", tmp_path / "a").exit_code == 0
    assert run(save_model(tmp_path / "dense", tensors), "--out", tmp_path / "b").exit_code == 0
    a, b = (safetensors.load(tmp_path / name / "model.safetensors").tensors for name in "ab")
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in b)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["num_key_value_heads"], config["head_dim"], config["tie_word_embeddings"]) == (2, 6, True)
    assert config["rms_norm_eps"] == float(np.float32(1e-5))


MEASURE = """
import sys
from refpeft.cli import main

def peak(model, out):
    try:
        main(["convert", model, "--out", out, "--backend", backend])
    except SystemExit as ended:
        assert not ended.code, ended
    with open("/proc/self/status") as status:  # unlike ru_maxrss, not what the parent had when it forked
        return next(line.split()[1] for line in status if line.startswith("VmHWM"))

backend, small, large, folder = sys.argv[1:]
print(peak(small, folder + "/small"), peak(large, folder + "/large"), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_memory_stays_under_twice_the_largest_tensor(tmp_path, backend):
    """Resident memory of a process of its own, mapped files included, over what a tiny model takes."""
    largest = 1536 * 2048
    for name, o, i in (("small", 8, 64), ("large", 1536, 2048)):
        rng = np.random.default_rng(0)
        drawn = {f"{n}.weight": rng.standard_normal((o, i), np.float32) for n in ("up", "down", "embed", "lm_head")}
        safetensors.save(tmp_path / f"{name}.safetensors", drawn)
    models = [tmp_path / "small.safetensors", tmp_path / "large.safetensors"]
    command = [sys.executable, "-c", MEASURE, backend, *models, tmp_path]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    before, after = map(int, ended.stderr.split())
    assert (after - before) * 1024 < 2 * 4 * largest


def finished(partial) -> int:
    """How many tensors a conversion has finished; none where its folder is not there yet, or no more."""
    return sum(name.endswith(".safetensors") for _, _, names in os.walk(partial) for name in names)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL twice at random instants of the work: DIR is not there, and at last it is, bit for bit as if nothing had happened.

    Where a kill comes too late, the conversion is whole, and all begins anew.
    """
    model = save_model(tmp_path / "dense", small(count=24, o=128, i=512))
    arguments = [model, "--double-quant", "--shard", "1MB", "--out", tmp_path / "killed", "--json"]
    command = [*PROGRAM, *map(str, arguments)]
    partial, seed = tmp_path / "killed.partial", random.randrange(1 << 30)
    instants, kills = random.Random(seed), 0
    for _ in range(20):
        had = finished(partial)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and finished(partial) <= had:
            time.sleep(0.002)
        time.sleep(instants.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "killed").exists():
            assert not partial.exists(), seed
            shutil.rmtree(tmp_path / "killed")
            kills = 0
        else:
            assert process.returncode == -signal.SIGKILL, seed
            kills += 1
        if kills == 2:
            break
    assert kills == 2, seed
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, (seed, ended.stderr)
    assert json.loads(ended.stdout)[0]["resumed"] >= 1, seed
    assert run(model, "--double-quant", "--shard", "1MB", "--out", tmp_path / "whole").exit_code == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole"), seed
    assert sorted(os.listdir(tmp_path)) == ["dense", "killed", "whole"], seed


def test_finished_tensors_are_not_done_twice(tmp_path, monkeypatch):
    """Interrupted at each tensor in turn, a conversion writes each of them once, and joins each file once."""
    model = save_model(tmp_path / "dense", small(count=5))
    source = open_model(model)
    work = Quantise(selected(source.tensors), Settings())
    done, real = [], Quantise.write

    def interrupted(self, path, name, tensor):
        if len(done) == stop:
            raise KeyboardInterrupt
        real(self, path, name, tensor)
        done.append(name)

    monkeypatch.setattr(Quantise, "write", interrupted)
    for stop in range(len(source.tensors)):  # noqa: B007 - read by ``interrupted``
        with pytest.raises(KeyboardInterrupt):
            rewrite(source, work, tmp_path / "out", shard=10_000)
        assert not (tmp_path / "out").exists()
    stop = None
    resumed, _ = rewrite(source, work, tmp_path / "out", shard=10_000)
    assert sorted(done) == sorted(source.tensors)
    assert resumed == len(done) - 1
    assert not (tmp_path / "out.partial").exists()


def refused(result, said, *, left, folder):
    """Exit status 2, one sentence, and nothing new in the folder."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert said in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(os.listdir(folder)) == sorted(left)


BAD = {
    "another format": (("--to", "nf3"), "There is no 4-bit format 'nf3' of bitsandbytes, expected nf4 or fp4"),
    "another block size": (("--blocksize", 100), "blocksize must be one of 32, 64"),
    "another dtype": (("--dtype", "fp8"), "dtype must be one of float32, bfloat16, float16, got 'fp8'"),
    "no tensor chosen": (("--quantise", "x*"), "None of the 7 tensors is quantised"),
    "a shard of no size": (("--shard", "0GB"), "--shard needs a size as 48GB or 47.5GiB, but '0GB' came"),
    "an unknown backend": (("--backend", "nonesuch"), "there is no backend 'nonesuch'"),
    "a backend that cannot": (("--backend", "peft"), "backend 'peft' does not implement nf4.quantize"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_end_in_one_sentence(tmp_path, what):
    """And leave nothing behind."""
    more, said = BAD[what]
    model = save_model(tmp_path / "dense", small())
    refused(run(model, "--out", tmp_path / "a", *more), said, left=["dense"], folder=tmp_path)


def test_bad_places_end_in_one_sentence(tmp_path):
    """No model, no folder to write to, a name that is taken."""
    model = save_model(tmp_path / "dense", small())
    refused(run(tmp_path / "none", "--out", tmp_path / "a"), "There is no model", left=["dense"], folder=tmp_path)
    refused(run(model, "--out", tmp_path / "no" / "a"), "does not exist", left=["dense"], folder=tmp_path)
    refused(
        run(model, "--out", model), "exists already, expected the name of a new folder", left=["dense"], folder=tmp_path
    )
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "precious").write_text("mine")
    for more in ((), ("--restart",)):
        result = run(model, "--out", tmp_path / "a", *more)
        refused(result, "is there and not from a conversion", left=["a.partial", "dense"], folder=tmp_path)


def test_bad_models_end_in_one_sentence(tmp_path):
    """Quantised already, not finite, with an index that lies, without weights."""
    model = save_model(tmp_path / "dense", small())
    assert run(model, "--out", tmp_path / "nf4").exit_code == 0
    left = ["bad", "dense", "nf4"]
    bad = save_model(
        tmp_path / "bad", small() | {"model.layers.0.mlp.up_proj.weight": np.full((2, 64), np.nan, np.float32)}
    )
    said = "Tensor model.layers.0.mlp.up_proj.weight has an element that is not finite"
    refused(run(bad, "--out", tmp_path / "a"), said, left=left, folder=tmp_path)
    for model in (tmp_path / "nf4", tmp_path / "nf4" / "model.safetensors"):
        refused(run(model, "--out", tmp_path / "a"), "is quantised already", left=left, folder=tmp_path)
    (bad / "model.safetensors").rename(bad / "a.safetensors")
    (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../dense/model.safetensors"}}))
    refused(run(bad, "--out", tmp_path / "a"), "there is no file '../dense", left=left, folder=tmp_path)
    (bad / "model.safetensors.index.json").write_text("{}")
    refused(
        run(bad, "--out", tmp_path / "a"), "weight_map must name a file for each tensor", left=left, folder=tmp_path
    )
    extra = dict.fromkeys(small() | {"x": 0}, "a.safetensors")
    for placed, said in ((extra, "tensor 'x': the index names it"), ({"x": "a.safetensors"}, "index does not name it")):
        (bad / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        refused(run(bad, "--out", tmp_path / "a"), said, left=left, folder=tmp_path)
    (bad / "model.safetensors.index.json").unlink()
    refused(run(bad, "--out", tmp_path / "a"), "there is neither model.safetensors nor", left=left, folder=tmp_path)


def test_another_plan_is_not_mixed_with_a_begun_one(tmp_path, monkeypatch):
    """Other options, or a model that changed, are refused until ``--restart``."""
    model = save_model(tmp_path / "dense", small())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("refpeft.convert.folder._join", killed)
        assert run(model, "--out", tmp_path / "a").exit_code == 130
    left, other = ["a.partial", "dense"], ("--blocksize", 128)
    refused(run(model, "--out", tmp_path / "a", *other), "--restart begins anew", left=left, folder=tmp_path)
    os.utime(model / "model.safetensors", (1, 1))
    refused(run(model, "--out", tmp_path / "a"), "--restart begins anew", left=left, folder=tmp_path)
    assert run(model, "--out", tmp_path / "a", *other, "--restart").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "dense"]


def test_two_processes_do_not_work_in_one_folder_and_what_a_late_kill_left_is_removed(tmp_path):
    """The second is refused while the first has the lock; of a conversion that is whole only its folder stays."""
    from refpeft.convert import partial
    from refpeft.errors import FormatError

    out = tmp_path / "a"
    folder, leave = partial.begin(out, b"plan", restart=False)
    with pytest.raises(FormatError, match="another process is at work there"):
        partial.begin(out, b"plan", restart=True)
    leave()
    (folder / "done").rename(out)
    with pytest.raises(FormatError, match="exists already"):
        partial.begin(out, b"plan", restart=False)
    assert list(tmp_path.iterdir()) == [out]
