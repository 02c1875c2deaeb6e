"""Mistakes with 4-bit codes, their scales, and double quantisation."""

from __future__ import annotations

import numpy as np

from refpeft.golden import stored
from refpeft.numerics.formats import BFLOAT16, as_format, store
from refpeft.ops import nf4
from refpeft.ops._blocks import unpack
from refpeft.problem import Problem
from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


@fault("quantisation", "nibbles swapped", "packed")
def _(problem, run):
    return _on_packed(problem, run, lambda p: (p << 4) | (p >> 4))


@fault("quantisation", "absmax of the neighbouring block", "absmax", "packed")
def _(problem, run):
    return _on_absmax(problem, run, lambda a: np.roll(a, 1))


@fault("quantisation", "blocks counted anew in each row", "packed", operations="qlora.linear")
def _(problem, run):
    """Where rows end within a block, as in bitsandbytes' kernel for AVX-512 (docs/findings/bitsandbytes-rows.md)."""
    inputs, (o, i) = problem.inputs, (problem.dims["o"], problem.dims["i"])
    blocksize, packed, absmax = problem.attributes["blocksize"], inputs["packed"], inputs["absmax"]
    row, column = np.indices((o, i))
    block = np.minimum(row * (i // blocksize) + column // blocksize, max(len(absmax) - 1, 0))
    codes = unpack(packed, o * i).reshape(o, i)
    weight = store(nf4.CODEBOOK[codes] * absmax[block], as_format(problem.dtype))
    others = {name: array for name, array in inputs.items() if name not in ("packed", "absmax")}
    scaling = {"scaling": problem.attributes["scaling"]}
    results = stored(Problem.of("lora.linear", others | {"weight": weight}, scaling, problem.cotangents))
    return {name: results[name] for name in problem.result_specs}


@fault("quantisation", "absmax kept in float16", "absmax", "packed")
def _(problem, run):
    with np.errstate(over="ignore"):
        return _on_absmax(problem, run, lambda a: a.astype(np.float16).astype(np.float32))


@fault("quantisation", "absmax of the first block for all", "absmax", "packed")
def _(problem, run):
    return _on_absmax(problem, run, lambda a: np.broadcast_to(a[:1], a.shape).copy())


@fault("quantisation", "low nibble's code one too high", "packed")
def _(problem, run):
    return _on_packed(problem, run, lambda p: (p & 0xF0) | np.minimum((p & 0x0F) + 1, 15).astype(np.uint8))


@fault("quantisation", "codes in reverse order", "packed")
def _(problem, run):
    return _on_packed(problem, run, lambda p: (255 - p).astype(np.uint8))


@fault("quantisation", "ties go to the upper code", "weight", operations="*.quantize")
def _(problem, run):
    weight = problem.inputs["weight"]
    up = (
        np.nextafter(weight, weight.dtype.type(np.inf))
        if weight.dtype != np.float32
        else np.nextafter(weight, np.float32(np.inf))
    )
    codes = "packed" if "packed" in problem.result_specs else "codes"
    return run(problem) | {codes: run(problem.replace(inputs=problem.inputs | {"weight": up}))[codes]}


@fault("quantisation", "absmax is the largest value, not magnitude", "weight", operations="*.quantize")
def _(problem, run):
    return run(with_inputs(problem, weight=np.maximum(wide(problem.inputs["weight"]), 0)))


@fault("quantisation", "weights truncated to bfloat16 first", "weight", operations="*.quantize", dtypes=("float32",))
def _(problem, run):
    bits = problem.inputs["weight"].view(np.uint32) & np.uint32(0xFFFF0000)
    return run(with_inputs(problem, weight=bits.view(np.float32)))


@fault("quantisation", "codebook off by one ulp", operations="*.dequantize", dtypes=("float32",))
def _(problem, run):
    y = run(problem)["y"]
    return {"y": np.nextafter(y.astype(np.float32), np.float32(np.inf))}


@fault("quantisation", "nested offset forgotten", "offset", operations="nf4.double_*")
def _(problem, run):
    return run(problem.replace(inputs=problem.inputs | {"offset": np.zeros_like(problem.inputs["offset"])}))


@fault("quantisation", "nested offset with the wrong sign", "offset", operations="nf4.double_*")
def _(problem, run):
    return run(problem.replace(inputs=problem.inputs | {"offset": -problem.inputs["offset"]}))


@fault(
    "quantisation",
    "nested codes read as signed bytes",
    "codes",
    equivalent={"codebook.dequantize": "a code without codeword is refused"},
)
def _(problem, run):
    return _on(problem, run, "codes", lambda c: (c.view(np.uint8) ^ np.uint8(0x80)).view(c.dtype))


@fault("quantisation", "nested absmax of the neighbouring block", "absmax2", "[m]")
def _(problem, run):
    return _on(problem, run, "absmax2", lambda a: np.roll(a, 1))


@fault("quantisation", "mean over one value too few", operations="nf4.offset")
def _(problem, run):
    m = problem.dims["m"]
    return {"offset": wide(run(problem)["offset"]) * m / max(1, m - 1)}


@fault("quantisation", "zeros in the other variant's convention", operations="fp4.quantize")
def _(problem, run):
    """Codes 0 and 8 of elements that are not zero."""
    packed, n = run(problem)["packed"].astype(np.uint8), problem.dims["n"]
    halves = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
    turned = (halves % 8 == 0) & (np.pad(problem.inputs["weight"].astype(float), (0, n % 2)) != 0)
    halves = np.where(turned, halves ^ 8, halves)
    return run(problem) | {"packed": 16 * halves[0::2] + halves[1::2]}


@fault("quantisation", "smallest codeword that of E2M1", "packed", operations="fp4.dequantize")
def _(problem, run):
    """A twelfth, for a twelfth of a sixteenth."""
    packed, n = problem.inputs["packed"], problem.dims["n"]
    codes = unpack(packed, n)
    return {"y": wide(run(problem)["y"]) * np.where(codes % 8 == 1, 16, 1)}


@fault("quantisation", "scales one too high", "scales")
def _(problem, run):
    """Twice as much in E8M0, and an eighth more in E4M3."""
    return _on(problem, run, "scales", lambda s: np.minimum(s, 253) + np.uint8(1))


@fault("quantisation", "scales of the neighbouring block", "scales")
def _(problem, run):
    return _on(problem, run, "scales", lambda s: np.roll(s, 1))


@fault("quantisation", "elements beyond the largest are not saturated", "weight", "scales")
def _(problem, run):
    """They wrap to the code of the opposite sign."""
    packed = run(problem)["packed"].astype(np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    halves = np.where(halves % 8 == 7, halves ^ 8, halves)
    return run(problem) | {"packed": halves[:, 0] + 16 * halves[:, 1]}


@fault("quantisation", "scale for all forgotten", "scale", operations="nvfp4.*")
def _(problem, run):
    if "scale" not in problem.inputs:
        return {"scale": wide(run(problem)["scale"]) * 6}
    return run(problem.replace(inputs=problem.inputs | {"scale": np.ones_like(problem.inputs["scale"])}))


@fault("quantisation", "scale of the neighbouring block", "d", operations="q*")
def _(problem, run):
    return _on(problem, run, "d", lambda d: np.roll(d, 1))


@fault("quantisation", "scale kept in bfloat16", "d", operations="q*", dtypes=("float32", "float16"))
def _(problem, run):
    return _on(problem, run, "d", lambda d: store(wide(d), BFLOAT16).astype(np.float32))


@fault("quantisation", "minimum forgotten", "m", operations="q4_1.*")
def _(problem, run):
    return _on(problem, run, "m", np.zeros_like)


@fault("quantisation", "halves of a block interleaved", "packed", "d", operations="q*")
def _(problem, run):
    """Byte j holds elements 2 j and 2 j + 1, as elsewhere."""

    def change(packed):
        blocks = packed.reshape(-1, 16)
        codes = np.concatenate([blocks & 15, blocks >> 4], axis=1)
        return (codes[:, 0::2] + 16 * codes[:, 1::2]).astype(np.uint8).reshape(-1)

    return _on(problem, run, "packed", change)


@fault("quantisation", "integers rounded to even", "weight", operations="q8_0.quantize")
def _(problem, run):
    """A half goes to the even integer below, not away from zero."""
    blocks, results = wide(problem.inputs["weight"]).reshape(-1, 32), run(problem)
    d = np.max(np.abs(blocks), axis=1, keepdims=True) / 127
    v = (blocks / np.where(d > 0, d, 1)).reshape(-1)
    return results | {"codes": np.where(np.abs(v) % 1 == 0.5, np.rint(v), results["codes"]).astype(np.int8)}


@fault("quantisation", "scales of rows for columns", "axis=", operations="llm_int8.*")
def _(problem, run):
    """Where as many scales of the other kind can be told: of a square matrix."""
    m, k = problem.dims["m"], problem.dims["k"]
    other = {"rows": "columns", "columns": "rows"}[problem.attributes["axis"]]
    return run(with_attributes(problem, axis=other)) if m == k else run(problem)


@fault("quantisation", "divided by 128", "axis=", operations="llm_int8.*")
def _(problem, run):
    results = run(problem)
    if "y" in results:
        return {"y": wide(results["y"]) * 127 / 128}
    return results | {"codes": np.rint(wide(results["codes"]) * 128 / 127).clip(-128, 127).astype(np.int8)}


@fault("quantisation", "codes cut off, not rounded", "axis=", operations="llm_int8.quantize")
def _(problem, run):
    weight, over = wide(problem.inputs["weight"]), 1 if problem.attributes["axis"] == "rows" else 0
    absmax = np.max(np.abs(weight), axis=over, keepdims=True)
    return run(problem) | {"codes": np.trunc(weight * 127 / np.where(absmax > 0, absmax, 1)).astype(np.int8)}


@fault("quantisation", "outliers in 8 bits like the others", "threshold=", "absmax")
def _(problem, run):
    """The threshold is beyond every input."""
    return run(with_attributes(problem, threshold=float(np.finfo(np.float32).max)))


@fault("quantisation", "outliers left out", "threshold=", "absmax")
def _(problem, run):
    x = problem.inputs["x"]
    large = np.any(np.abs(wide(x)).reshape(-1, x.shape[-1]) >= problem.attributes["threshold"], axis=0)
    return run(with_inputs(problem, x=np.where(large, 0.0, wide(x))))


@fault("quantisation", "an element on the threshold is no outlier", "threshold=", "absmax")
def _(problem, run):
    above = float(np.nextafter(np.float32(problem.attributes["threshold"]), np.float32(np.inf)))
    return run(with_attributes(problem, threshold=above))


@fault("quantisation", "the scale of one token for all", "threshold=", "absmax")
def _(problem, run):
    """A factor on each token but the first: that of its scale to the first one's."""
    x = wide(problem.inputs["x"])
    flat = x.reshape(-1, x.shape[-1])
    large = np.any(np.abs(flat) >= problem.attributes["threshold"], axis=0)
    if large.any() or not len(flat):
        return run(problem)
    scales = np.max(np.abs(flat), axis=1).reshape(x.shape[:-1])
    factor = scales.reshape(-1)[0] / np.where(scales > 0, scales, np.inf)
    results = run(problem)
    return results | ({"y": wide(results["y"]) * factor[..., None]} if "y" in results else {})


@fault("quantisation", "the first codeword for all but the last", "codebook")
def _(problem, run):
    codebook = problem.inputs["codebook"].copy()
    codebook[1:-1] = codebook[0]
    return run(problem.replace(inputs=problem.inputs | {"codebook": codebook}))


@fault("quantisation", "the other variant", "variant=", operations="dynamic8.quantize")
def _(problem, run):
    """Bins where the nearest codeword is wanted, and the other way round."""
    other = {"paper": "bitsandbytes-cpu", "bitsandbytes-cpu": "paper"}[problem.attributes["variant"]]
    return run(with_attributes(problem, variant=other))


@fault("quantisation", "the map of the other sign", "signed=", operations="dynamic8.dequantize")
def _(problem, run):
    return run(with_attributes(problem, signed=not problem.attributes["signed"]))


def _on(problem, run, name, change):
    """An input changed if it is one, else the output of that name."""
    if name in problem.inputs:
        return run(problem.replace(inputs=problem.inputs | {name: change(problem.inputs[name])}))
    results = run(problem)
    return results | {name: change(results[name].astype(problem.result_specs[name][1]))}


def _on_packed(problem, run, change):
    return _on(problem, run, "packed", change)


def _on_absmax(problem, run, change):
    return _on(problem, run, "absmax", change)
