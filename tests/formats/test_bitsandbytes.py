"""4-bit checkpoints of bitsandbytes: it loads what refpeft writes and refpeft loads what it writes, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refpeft.errors import AttributeValueError, CapabilityError, DomainError, FormatError
from refpeft.formats import safetensors
from refpeft.formats.bitsandbytes import KINDS, Quantised, decode, dequantise, encode, quantise, weights
from refpeft.formats.four_bit import in_multiples

SHAPES = [(24, 32), (5, 13), (130, 257)]
"""Whole blocks; an odd number of elements, less than two blocks; more than 256 blocks, the last of them partial."""


@pytest.fixture
def bnb():
    """bitsandbytes, with one thread, so that the mean of the maxima is always the same."""
    torch, bitsandbytes = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bitsandbytes
    torch.set_num_threads(threads)


def drawn(shape, dtype="float32"):
    import ml_dtypes

    weight = np.random.default_rng(0).normal(size=shape)
    return weight.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))


def by_bitsandbytes(weight, dtype, *, kind, double, blocksize):
    """What a Linear4bit layer of bitsandbytes saves, as safetensors bytes by the official library."""
    import bitsandbytes
    import torch
    from safetensors.torch import save

    o, i = weight.shape
    layer = bitsandbytes.nn.Linear4bit(i, o, bias=False, compress_statistics=double, quant_type=kind, device="meta")
    given = torch.from_numpy(weight.astype(np.float32)).to(getattr(torch, dtype))
    layer.weight = bitsandbytes.nn.Params4bit(
        given, requires_grad=False, blocksize=blocksize, compress_statistics=double, quant_type=kind
    ).to("cpu")
    return save(layer.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "blocksize"), [("float32", 64), ("bfloat16", 128), ("float16", 32)])
def test_both_write_the_same_bytes(bnb, kind, double, shape, dtype, blocksize):
    """Every tensor of the file, the JSON state among them; under double quantisation with bitsandbytes' own mean."""
    weight = drawn(shape, dtype)
    theirs = safetensors.loads(by_bitsandbytes(weight, dtype, kind=kind, double=double, blocksize=blocksize)).tensors
    read = decode("weight", theirs)
    offset = read.nested.offset if double else None
    parts = np.array_split(weight.reshape(-1), 5)
    made = quantise(parts, shape, kind=kind, double=double, dtype=dtype, blocksize=blocksize, offset=offset)
    ours = encode("weight", made)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bitsandbytes_loads_what_refpeft_writes(bnb, kind, double, dtype, tmp_path):
    """From a file, by `Params4bit.from_prequantized`; both dequantise it to the same bits, but for FP4's "-0", whose sign is
    the processor's affair there.
    """
    from safetensors.torch import load_file

    shape = SHAPES[2]
    made = quantise([drawn(shape).reshape(-1)], shape, kind=kind, double=double, dtype=dtype)
    safetensors.save(tmp_path / "a.safetensors", encode("layer.weight", made))
    tensors = load_file(tmp_path / "a.safetensors")
    data = tensors.pop("layer.weight")
    loaded = bnb.nn.Params4bit.from_prequantized(data, tensors, device="cpu")
    theirs = bnb.functional.dequantize_4bit(loaded.data, loaded.quant_state)
    lazy = safetensors.scan(tmp_path / "a.safetensors")
    assert weights(lazy.names()) == ["layer.weight"]
    ours = dequantise(decode("layer.weight", lazy))
    assert ours.shape == shape
    unsigned = np.float32(0)  # -0 + 0 is 0
    assert (ours.astype(np.float32) + unsigned).tobytes() == (theirs.float().numpy() + unsigned).tobytes()
    assert ours.dtype.name == dtype


def test_the_mean_of_the_maxima_is_summed_in_float64(bnb):
    """refpeft's own differs from torch's by its roundings only; every other part of the file is as with torch's mean."""
    weight = drawn((512, 512))
    theirs = decode(
        "weight", safetensors.loads(by_bitsandbytes(weight, "float32", kind="nf4", double=True, blocksize=64)).tensors
    )
    made = quantise([weight.reshape(-1)], weight.shape, double=True)
    plain = quantise([weight.reshape(-1)], weight.shape)
    assert made.nested.offset == np.float32(plain.absmax.astype(np.float64).mean())
    assert abs(made.nested.offset - theirs.nested.offset) <= 4096 * 2.0**-24 * made.nested.offset
    assert np.array_equal(made.packed, theirs.packed)


def test_parts_of_any_length_give_the_same_bits():
    """Blocks go across the parts: pieces of one, of primes, of nothing."""
    weight = drawn((37, 29)).reshape(-1)
    whole = encode("w", quantise([weight], (37, 29), double=True))
    for cuts in (range(1, weight.size), range(7, weight.size, 7), (0, 0, 64, 64, 65, 1000)):
        split = encode("w", quantise(np.split(weight, list(cuts)), (37, 29), double=True))
        assert {n: t.tobytes() for n, t in split.items()} == {n: t.tobytes() for n, t in whole.items()}
    assert [piece.size for piece in in_multiples(np.split(weight, [5, 200]), 64)] == [192, 832, 49]


def test_an_empty_weight_is_one():
    """No elements, no blocks: written and read."""
    made = quantise([], (0, 5), double=True)
    assert dequantise(decode("w", encode("w", made))).shape == (0, 5)


def state(**changes):
    """The state of a weight with some values replaced, or left out where None."""
    found = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [5, 13]}
    found |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    text = json.dumps({k: v for k, v in (found | changes).items() if v is not None})
    return {"w.quant_state.bitsandbytes__nf4": np.frombuffer(text.encode(), np.uint8)}


f32 = np.float32
ATTACKS = {
    "no weight": ({"w": None}, "there is no such tensor"),
    "no state": ({"w.quant_state.bitsandbytes__nf4": None}, "got 0 of them"),
    "two states": ({"w.quant_state.bitsandbytes__fp4": np.zeros(1, np.uint8)}, "got 2 of them"),
    "a state that is no JSON": (
        {"w.quant_state.bitsandbytes__nf4": np.frombuffer(b"{", np.uint8)},
        "must be a JSON object",
    ),
    "a state that is deep": (
        {"w.quant_state.bitsandbytes__nf4": np.full(60000, ord("["), np.uint8)},
        "must be a JSON object",
    ),
    "a state that is long": (
        {"w.quant_state.bitsandbytes__nf4": np.full(1 << 17, 32, np.uint8)},
        "at most 65536 bytes",
    ),
    "a state of another kind": (state(quant_type="fp4"), "quant_type in its state must be 'nf4', got 'fp4'"),
    "another block size": (state(blocksize=48), "blocksize in its state must be one of 32, 64"),
    "a block size that is no integer": (state(blocksize=64.0), "blocksize in its state must be one of 32, 64"),
    "another dtype": (state(dtype="int8"), "dtype in its state must be one of float32"),
    "a shape that lies": (state(shape=[50, 13]), "must have 325 bytes of codes, got 33"),
    "a shape that overflows": (state(shape=[1 << 39, 1 << 39]), "shape in its state must be a list of sizes"),
    "a negative shape": (state(shape=[-5, -13]), "shape in its state must be a list of sizes"),
    "an offset that is NaN": (state(nested_offset=float("nan")), "nested_offset in its state must be a float32 number"),
    "an offset that is text": (state(nested_offset="1"), "nested_offset in its state must be a float32 number"),
    "another nested block size": (state(nested_blocksize=64), "nested_blocksize in its state must be 256, got 64"),
    "a state that forgets the nesting": (
        state(nested_offset=None),
        "absmax float32 of shape (2,), got uint8 of shape (2,)",
    ),
    "maxima too few": ({"w.absmax": np.zeros(1, np.uint8)}, "absmax uint8 of shape (2,), got uint8 of shape (1,)"),
    "no nested maxima": ({"w.nested_absmax": None}, "its nested_absmax is missing"),
    "other codewords": ({"w.quant_map": np.linspace(-1, 1, 16, dtype=f32)}, "quant_map[1] = -0.69619"),
    "other nested codewords": ({"w.nested_quant_map": np.zeros(256, f32)}, "nested_quant_map[0] = -0.9929687"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_checkpoint_that_contradicts_itself_is_refused(what):
    """Before anything is computed, with what was expected and what came."""
    changes, said = ATTACKS[what]
    tensors = encode("w", quantise([drawn((5, 13)).reshape(-1)], (5, 13), double=True)) | changes
    with pytest.raises(FormatError) as refused:
        decode("w", {name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert said in str(refused.value)


def test_what_cannot_be_quantised_is_refused():
    """Sizes, dtypes, kinds and values that bitsandbytes does not have."""
    weight = [drawn((5, 13)).reshape(-1)]
    for given, shape in ((weight, (5, 12)), (weight, (5, 14))):
        with pytest.raises(FormatError, match="elements, but more or fewer came"):
            quantise(given, shape)
    with pytest.raises(AttributeValueError, match=r"blocksize must be one of 32, 64, .*, got 48"):
        quantise(weight, (5, 13), blocksize=48)
    with pytest.raises(AttributeValueError, match="dtype must be one of float32, bfloat16, float16, got 'float64'"):
        quantise(weight, (5, 13), dtype="float64")
    with pytest.raises(CapabilityError, match="no 4-bit format 'nf3' of bitsandbytes, expected nf4 or fp4"):
        quantise(weight, (5, 13), kind="nf3")
    with pytest.raises(DomainError, match="Only finite numbers are quantised, got inf"):
        quantise([np.full(65, np.inf, np.float32)], (5, 13))


def test_any_backend_may_do_it():
    """torch and the tuned NumPy quantise to the same bits; a backend that lacks the operation is named."""
    pytest.importorskip("torch")
    from refpeft import plugins

    weight, shape = [drawn((130, 257)).reshape(-1)], (130, 257)
    made = encode("w", quantise(weight, shape, double=True))
    for name in ("torch", "cpu"):
        other = encode("w", quantise(weight, shape, double=True, backend=plugins.backend(name)))
        assert {n: t.tobytes() for n, t in other.items()} == {n: t.tobytes() for n, t in made.items()}
    with pytest.raises(CapabilityError, match=r"does not implement nf4\.quantize"):
        quantise(weight, shape, backend=plugins.backend("peft"))


def test_codes_may_be_stored_in_another_dtype():
    """``quant_storage``: the same bytes as bfloat16, as FSDP wants them."""
    import ml_dtypes

    made = quantise([drawn((24, 32)).reshape(-1)], (24, 32))
    tensors = encode("w", made)
    tensors["w"] = tensors["w"].reshape(-1).view(ml_dtypes.bfloat16).reshape(-1, 1)
    read: Quantised = decode("w", tensors)
    assert np.array_equal(read.packed, made.packed)
