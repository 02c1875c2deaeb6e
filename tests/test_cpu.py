"""The CPU backend where the kit's problems are too small to go: several chunks, groups and threads."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft import catalogue, plugins
from refpeft.numerics.formats import as_format
from refpeft.ops import dynamic8, fp4, nf4
from refpeft_cpu import chunks, llm_int8_linear, lm_loss, memory, qlora, threads
from refpeft_cpu import nf4 as tuned


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Three threads, and pieces of a few blocks."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(chunks, "CHUNK", 128)
    monkeypatch.setattr(chunks, "LEAST", 256)
    monkeypatch.setattr(qlora, "GROUP", 60)
    monkeypatch.setattr(llm_int8_linear, "GROUP", 60)


@pytest.mark.parametrize(
    ("operation", "shapes", "attributes"),
    [
        ("nn.linear", [(5, 6)], {}),
        ("lora.linear", [(5, 6), (2, 6), (5, 2)], {"scaling": 2.0}),
        ("nn.rope", [(7, 3), (7, 3)], {"layout": "halves"}),
    ],
)
def test_an_input_is_kept_only_for_a_gradient_that_may_be_wanted(operation, shapes, attributes):
    """Of a frozen matrix, or of tables, dx takes no x: the residual has its shape, and the memory of one number."""
    x, *weights = (np.ones(s, np.float32) for s in [(7, 6), *shapes])
    forward = plugins.backend("cpu").implementation(operation).forward
    (whole, *_), (hollow, *_) = (forward(x, *weights, residuals=r, **attributes)[1] for r in (True, ("x",)))
    assert np.shares_memory(whole, x)
    assert (hollow.shape, hollow.dtype, hollow.strides) == (x.shape, x.dtype, (0, 0))


@pytest.mark.parametrize("largest", [1.0, 1e3])
def test_a_loss_over_parts_of_the_vocabulary_is_the_loss(largest, monkeypatch):
    """Where no logit is large, and where the running maximum grows from part to part."""
    monkeypatch.setattr(lm_loss, "CHUNK", 1)
    monkeypatch.setattr(lm_loss, "WORDS", 5)
    random = np.random.default_rng(0)
    x, weight = (random.uniform(-0.5, 0.5, s).astype(np.float32) for s in [(4, 6), (23, 6)])
    weight *= np.linspace(0, largest, 23, dtype=np.float32)[:, None]
    target, mask = np.array([22, 0, 7, 5]), np.array([True, True, False, True])
    implementation, one = plugins.backend("cpu").implementation("nn.lm_loss"), np.float32(1)
    (loss,), residuals = implementation.forward(x, weight, target, mask)
    dx, dweight = implementation.vjp(residuals, (one,), ["x", "weight"])
    found, inputs = {"loss": loss, "dx": dx, "dweight": dweight}, {"weight": weight, "target": target, "mask": mask}
    refpeft.assert_conforms("nn.lm_loss", found, x=x, dloss=one, **inputs)


CASES = [(nf4, v) for v in ("paper", "bitsandbytes-cpu")] + [(fp4, v) for v in ("sign-magnitude", "bitsandbytes-cpu")]


@pytest.mark.parametrize(("format", "variant"), CASES)
@pytest.mark.parametrize("dtype", nf4.DTYPES)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 129, 1000, 4099])
def test_codes_maxima_and_values_are_the_references_bits(n, dtype, format, variant):
    """Whatever the number of chunks and threads, partial blocks and odd lengths included."""
    backend = plugins.backend("cpu")
    quantize, dequantize = (backend.implementation(op.name).forward for op in (format.quantize, format.dequantize))
    weight = np.random.default_rng(n).normal(size=n).astype(as_format(dtype).dtype)
    for blocksize in (32, 64, 256):
        found, _ = quantize(weight, blocksize=blocksize, variant=variant)
        expected = format.quantize(weight.astype(np.float64), blocksize=blocksize, variant=variant)
        for ours, theirs in zip(found, expected):
            np.testing.assert_array_equal(ours, theirs)
        options = {"n": n, "blocksize": blocksize, "dtype": dtype}
        np.testing.assert_array_equal(dequantize(*found, **options)[0][0], format.dequantize(*found, **options))


WEIGHT = np.random.default_rng(1).normal(size=(40, 48)).astype(np.float32)
CODEBOOK = np.sort(np.random.default_rng(2).uniform(-1, 1, 256)).astype(np.float32)
CALLS = [
    ("mxfp4", (WEIGHT.reshape(-1)[:1801],), {}, {"n": 1801}),
    ("nvfp4", (WEIGHT.reshape(-1)[:1801], np.float32(2.0**-9)), {}, {"n": 1801}),
    ("q4_0", (WEIGHT.reshape(-1),), {}, {}),
    ("q4_1", (WEIGHT.reshape(-1),), {}, {}),
    ("q8_0", (WEIGHT.reshape(-1),), {}, {}),
    ("llm_int8", (WEIGHT,), {"axis": "rows"}, {"axis": "rows"}),
    ("llm_int8", (WEIGHT,), {"axis": "columns"}, {"axis": "columns"}),
    ("codebook", (WEIGHT.reshape(-1)[:1801], CODEBOOK[::17]), {"blocksize": 64}, {"blocksize": 64}),
    ("codebook", (WEIGHT.reshape(-1)[:1801], CODEBOOK), {"blocksize": 64}, {"blocksize": 64}),
]


@pytest.mark.parametrize(("family", "inputs", "attributes", "decoding"), CALLS)
@pytest.mark.parametrize("dtype", nf4.DTYPES)
def test_the_other_formats_have_the_references_bits(family, inputs, attributes, decoding, dtype):
    """Codes, scales and values, of several chunks and threads; with a block of zeros and one of subnormal numbers."""
    quantize, dequantize = (catalogue()[f"{family}.{name}"] for name in ("quantize", "dequantize"))
    weight, *others = inputs
    weight = weight.astype(as_format(dtype).dtype)
    weight[: len(weight) // 5], weight[-(len(weight) // 8) :] = 0, weight[-(len(weight) // 8) :] * 2.0**-130
    forward = plugins.backend("cpu").implementation(quantize.name).forward
    found = forward(weight, *others, **attributes)[0]
    expected = quantize.forward(weight.astype(np.float64), *others, **attributes)
    for ours, theirs in zip(found, expected):
        np.testing.assert_array_equal(ours, theirs)
    extra = others if family in ("nvfp4", "codebook") else []
    forward = plugins.backend("cpu").implementation(dequantize.name).forward
    y = forward(*found, *extra, **decoding, dtype=dtype)[0][0]
    np.testing.assert_array_equal(y, dequantize.forward(*found, *extra, **decoding, dtype=dtype))


@pytest.mark.parametrize("variant", ["paper", "bitsandbytes-cpu"])
def test_eight_bit_moments_go_through_several_chunks(variant):
    """As through one, to the last bit, padding included; and they conform."""
    random = np.random.default_rng(0)
    p, grad = (random.normal(size=1801).astype(np.float32) for _ in range(2))
    m, v = (random.integers(0, 256, 1801).astype(np.uint8) for _ in range(2))
    inputs = {"p": p, "grad": grad, "m": m, "v": v}
    inputs |= {name: random.random(8).astype(np.float32) for name in ("m_absmax", "v_absmax")}
    attributes = {"lr": 0.1, "step": 3, "decay": 0.01, "variant": variant}
    outputs = plugins.backend("cpu").implementation("adam8bit.step").forward(**inputs, **attributes)[0]
    names = [output.name for output in catalogue()["adam8bit.step"].outputs]
    refpeft.assert_conforms("adam8bit.step", dict(zip(names, outputs)), **inputs, **attributes)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("variant", ["paper", "bitsandbytes-cpu"])
def test_eight_bit_codes_are_the_references_on_and_beside_every_midpoint(signed, variant):
    """Each midpoint and both neighbours of it, in blocks of maximum 1; and random numbers."""
    middle = np.array(dynamic8.midpoints(signed), np.float32)
    beside = np.concatenate([middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(-2))])
    blocks = np.pad(beside if signed else np.abs(beside), (0, -beside.size % 31)).reshape(-1, 31)
    blocks = np.concatenate([np.ones((len(blocks), 1), np.float32), blocks], axis=1)
    random = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    quantize = plugins.backend("cpu").implementation("dynamic8.quantize").forward
    for weight in (blocks.reshape(-1), random if signed else np.abs(random)):
        options = {"blocksize": 32, "signed": signed, "variant": variant}
        for ours, theirs in zip(
            quantize(weight, **options)[0], dynamic8.quantize(weight.astype(np.float64), **options)
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_weight_decoded_in_groups_gives_what_the_whole_gives():
    """Rows that start and end within a block; gradients included."""
    random = np.random.default_rng(0)
    o, i, r = 11, 29, 3
    x, a, b, dy = (random.normal(size=s).astype(np.float32) for s in ((5, i), (r, i), (o, r), (5, o)))
    packed, absmax = tuned.quantize(random.normal(size=o * i).astype(np.float32), blocksize=64, variant="paper")[0]
    attributes = {"scaling": 0.5, "blocksize": 64, "dtype": "float32"}
    (y,), residuals = qlora.linear(x, packed, absmax, a, b, **attributes)
    dx, da, db = qlora.vjp(residuals, (dy,), ("x", "a", "b"))
    inputs = {"x": x, "packed": packed, "absmax": absmax, "a": a, "b": b}
    refpeft.assert_conforms("qlora.linear", {"y": y, "dx": dx, "da": da, "db": db}, dy=dy, **inputs, **attributes)


@pytest.mark.parametrize("variant", ["paper", "bitsandbytes"])
def test_integers_multiplied_in_groups_give_what_the_whole_gives(variant):
    """Gradients included; with columns of outliers, of which one holds an element on the threshold."""
    random = np.random.default_rng(0)
    x, bias, dy = (random.normal(size=s).astype(np.float32) for s in ((5, 29), (11,), (5, 11)))
    x[:, 3], x[1, 8] = 50 * x[:, 3], 6
    codes, absmax = random.integers(-127, 128, (11, 29)).astype(np.int8), random.random(11).astype(np.float32)
    inputs = {"x": x, "codes": codes, "absmax": absmax, "bias": bias}
    attributes = {"threshold": 6.0, "variant": variant, "dtype": "float32"}
    (y,), residuals = llm_int8_linear.linear(**inputs, **attributes)
    dx, dbias = llm_int8_linear.vjp(residuals, (dy,), ("x", "bias"))
    refpeft.assert_conforms("llm_int8.linear", {"y": y, "dx": dx, "dbias": dbias}, dy=dy, **inputs, **attributes)


def test_every_part_is_worked_on_once(monkeypatch):
    """By as many threads as are wanted, none with less than its least."""
    done = []
    threads.share_out(lambda first, last: done.append((first, last)), 10, 3)
    assert sorted(done) == [(0, 3), (3, 6), (6, 10)]
    done.clear()
    threads.share_out(lambda first, last: done.append((first, last)), 5, 3)
    assert done == [(0, 5)]


def test_an_error_in_a_thread_is_raised():
    """Not lost with the thread."""

    def work(first, last):
        raise ValueError(f"from {first}")

    with pytest.raises(ValueError, match="from 0"):
        threads.share_out(work, 10, 1)


def test_memory_is_used_again_only_when_no_view_of_it_is_left(monkeypatch):
    """A view of a view keeps it; what comes back serves the next array of its size; small arrays are NumPy's own."""
    monkeypatch.setattr(memory, "LARGE", 64)
    first = memory.empty((4, 8), np.float32)
    place, row = first.ctypes.data, first[1:].view(np.int32)[0]
    del first
    row[:] = 7
    other = memory.empty((32,), np.float32)
    other[:] = 0
    assert other.ctypes.data != place and np.all(row == 7)
    del row
    assert memory.empty((16,), np.float64).ctypes.data == place
    assert memory.empty((2, 3), np.float32).flags.owndata


def test_no_more_memory_is_kept_than_the_limit(monkeypatch):
    """Beyond it all that was kept before is let go, and what is larger than it is never kept."""
    monkeypatch.setattr(memory, "LARGE", 64)
    monkeypatch.setattr(memory, "KEPT", 200)
    memory._unused.clear()
    for size in (64, 100, 150, 1000):
        memory.empty((size,), np.uint8)
    assert {size: len(kept) for size, kept in memory._unused.items() if kept} == {150: 1}
    memory._unused.clear()


def test_it_is_a_backend_like_any_other():
    """Listed, with its operations."""
    assert "nf4.quantize" in plugins.backend("cpu").operations()
