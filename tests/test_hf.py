"""peft, adapters and bitsandbytes as backends: certified apart from what docs/findings says, and each finding is there."""

from __future__ import annotations

import logging
import runpy
import warnings
from pathlib import Path

import pytest

from refpeft import plugins
from refpeft.operation import catalogue, find
from refpeft_conformance.agreement import agree
from refpeft_conformance.checks import checks_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_hf import adapterhub_findings, findings

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("hypothesis")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("peft")
    try:
        import adapters
    except ImportError:
        adapters = None

needs_adapters = pytest.mark.skipif(adapters is None, reason="adapters is not installed")
needs_avx512 = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="the CPU has no AVX-512"
)

FINDINGS = Path(__file__).resolve().parents[1] / "docs" / "findings"


def verdict(backend: str, operation: str, claim: str, dtype: str = "float32", profile: str = "quick"):
    """What a profile says of one claim."""
    check = next(c for c in checks_of(find(operation), dtype) if c.claim == claim)
    return run(check, Subject(plugins.backend(backend)), profile=profile, shrinking=False)


def passes(backend: str, operation: str, dtype: str):
    """Outputs and gradients of random problems are within their budgets."""
    for what in ("outputs", "gradients"):
        found = verdict(backend, operation, f"{what} within budget on random inputs", dtype)
        assert found.verdict == "PASS", found.message


def test_peft_offers_what_the_catalogue_has():
    """Every operation that a library implements is one of the catalogue; more than ninety are peft's."""
    for backend in ("peft", "peft-apart", "bitsandbytes", *(("adapters", "adapters-apart") if adapters else ())):
        assert plugins.backend(backend).operations().keys() <= catalogue().keys()
    assert len(plugins.backend("peft").operations()) > 90


@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        ("lora.linear", "float64"),
        ("lora.linear", "bfloat16"),
        ("adalora.linear", "float16"),
        ("dora.linear", "float32"),
        ("vera.linear", "bfloat16"),
        ("ia3.linear", "float32"),
        ("loha.linear", "float64"),
        ("hira.linear", "bfloat16"),
        ("vblora.linear", "float32"),
        ("fourierft.linear", "float32"),
        ("waveft.linear", "float64"),
        ("glora.linear", "float64"),
        ("deft.linear", "float32"),
        ("psoft.linear", "float64"),
        ("peanut.linear", "float16"),
        ("alora.linear", "float64"),
        ("frod.linear", "float32"),
        ("osf.linear", "float64"),
        ("poly.linear", "float64"),
        ("multitask_prompt.embed", "float64"),
        ("lora.batched", "bfloat16"),
    ],
)
def test_peft_passes_apart_from_its_findings(operation, dtype):
    """Outputs and gradients to every tensor lie within the proven budget."""
    passes("peft-apart", operation, dtype)


@needs_adapters
@pytest.mark.parametrize(
    ("operation", "dtype"),
    [
        ("adapter.bottleneck", "bfloat16"),
        ("adapter.sublayer", "float64"),
        ("adapter.fusion", "float32"),
        ("compacter.linear", "float64"),
        ("ia3.linear", "float32"),
        ("lora.batched", "bfloat16"),
        ("mtl_lora.linear", "float32"),
        ("nice.couple", "bfloat16"),
        ("prefix.attention", "float64"),
        ("prefix.encode", "float16"),
        ("reft.edit", "float64"),
        ("unipelt.linear", "float16"),
        ("vera.linear", "float64"),
    ],
)
def test_adapters_passes_apart_from_its_findings(operation, dtype):
    """The same."""
    passes("adapters-apart", operation, dtype)


@pytest.mark.parametrize("operation", ["lora.merge", "lora.unmerge", "lokr.merge", "road.merge"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_pefts_merges_pass(operation, dtype):
    """On a real copy of the layer, by its own method."""
    found = verdict("peft", operation, "outputs within budget on random inputs", dtype)
    assert found.verdict == "PASS", found.message


BITSANDBYTES = ["nf4.quantize", "nf4.double_quantize", "fp4.quantize", "dynamic8.quantize"]
BITSANDBYTES += ["dynamic8.dequantize", "codebook.dequantize", "llm_int8.quantize", "llm_int8.dequantize"]


@pytest.mark.parametrize("operation", BITSANDBYTES)
def test_bitsandbytes_formats_pass(operation):
    """Bit for bit under the variant that is its reading."""
    found = verdict("bitsandbytes", operation, "outputs equal as numbers")
    assert found.verdict == "PASS", found.message


@pytest.mark.parametrize("operation", ["adam.step", "adamw.step", "lion.step", "sgd.step", "adam8bit.step"])
def test_bitsandbytes_optimizers_pass(operation):
    """Its steps for the CPU, in float32, and its inputs are as they were: the wrapper hands in copies."""
    for claim in ("outputs within budget on random inputs", "inputs are left as they were"):
        found = verdict("bitsandbytes", operation, claim)
        assert found.verdict == "PASS", found.message


def test_what_peft_does_not_take_is_declared():
    """It draws its dropout masks itself; these problems are counted, and others are drawn in their place."""
    found = verdict("peft", "lora.linear", "outputs within budget on random inputs")
    assert found.observation.outside["peft draws its dropout itself and takes no mask"] > 0
    assert found.observation.examples > 0


@pytest.mark.parametrize(
    ("backend", "operation", "claim", "dtype", "message"),
    [
        ("peft", "lora.conv2d", "outputs within budget on random inputs", "float32", "must match the size of tensor"),
        ("peft", "dora.linear", "outputs within budget on random inputs", "float32", "but must be float32"),
        ("peft", "boft.linear", "gradients within budget on wide inputs", "bfloat16", "dbias"),
        ("peft", "oft.conv2d", "outputs within budget on random inputs", "float32", "raised RuntimeError"),
        ("peft", "oft.linear", "outputs within budget on random inputs", "float32", "invalid for input of size 0"),
        ("peft", "loha.linear", "outputs within budget on random inputs", "float64", "off by"),
        ("peft", "gralora.linear", "empty batches give empty results", "float32", "cannot reshape tensor of 0"),
        ("peft", "fourierft.linear", "outputs within budget on random inputs", "float64", "off by"),
        (
            "peft",
            "waveft.merge",
            "outputs within budget on random inputs",
            "float32",
            ("off by", "must match the size"),
        ),
        ("peft", "c3a.linear_fft", "outputs within budget on random inputs", "float64", "off by"),
        ("peft", "c3a.linear_fft", "gradients within budget on random inputs", "float32", "dx"),
        ("peft", "deft.linear", "gradients within budget on random inputs", "float32", "dbias"),
        ("peft", "glora.linear", "outputs within budget on sparse inputs", "bfloat16", "off by"),
        ("peft", "alora.linear", "column-major inputs give the same answer", "float32", "view size is not compatible"),
        ("peft", "trainable_tokens.linear", "gradients within budget on random inputs", "float32", "dbias"),
        ("peft", "hra.linear", "gradients within budget on random inputs", "float32", "dweight"),
        ("peft", "lokr.merge", "column-major inputs give the same answer", "float32", "view size is not compatible"),
        *(
            pytest.param("adapters", operation, claim, dtype, message, marks=needs_adapters)
            for operation, claim, dtype, message in (
                ("dora.linear", "the magnitude scales y without its bias", "float32", "0.0 but must be"),
                ("dora.merge", "outputs within budget on random inputs", "float64", "off by"),
                ("xlora.linear", "one open gate is that adapter's LoRA", "float32", "where the budgets leave"),
                ("ia3.linear", "outputs within budget on random inputs", "float32", "y is float32[1, 1, 1]"),
                ("adapter.fusion", "equal inputs give equal bits", "float32", "differs between two runs"),
                ("compacter.phm", "outputs within budget on long inputs", "bfloat16", "off by"),
                ("reft.edit", "outputs within budget on random inputs", "bfloat16", "must have the same dtype"),
                ("vera.linear", "gradients within budget on cancelling inputs", "bfloat16", "off by"),
            )
        ),
        ("bitsandbytes", "nf4.double_dequantize", "strided inputs give the same answer", "float32", "absmax"),
        ("bitsandbytes", "dynamic8.dequantize", "strided inputs give the same answer", "float32", "y["),
        (
            "bitsandbytes",
            "llm_int8.quantize",
            "outputs within budget on subnormal inputs",
            "float32",
            "got 0; off by",
        ),
        pytest.param(
            "bitsandbytes",
            "qlora.linear",
            "outputs",
            "float32",
            "y[",
            marks=needs_avx512,
        ),
        ("bitsandbytes", "llm_int8.linear", "outputs within budget on random inputs", "float32", "y["),
        pytest.param(
            *("bitsandbytes", "nf4.dequantize", "outputs within budget on subnormal inputs", "bfloat16", "0; off by"),
            marks=needs_avx512,
        ),
    ],
)
def test_the_suite_reports_each_finding_unaided(backend, operation, claim, dtype, message):
    """At the standard profile; where only the beginning of a claim is said, by one of those that begin so.

    Which of several mistakes is met first depends on what is drawn.
    """
    claims = [c.claim for c in checks_of(find(operation), dtype) if c.claim.startswith(claim)]
    verdicts = (verdict(backend, operation, claim, dtype, profile="standard") for claim in claims)
    found = next(v for v in verdicts if v.verdict == "FAIL")
    assert any(part in found.message for part in ([message] if isinstance(message, str) else message)), found.message


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (
            "peft_lora_conv.py",
            ["dilation 2: RuntimeError", "padding_mode reflect: merged and unmerged layer differ by 2"],
        ),
        (
            "peft_square_conv.py",
            [
                "HRA, kernel_size 1, stride (1, 2): at the start y is (1, 4, 6, 6) for (1, 4, 6, 3)",
                "HRA, kernel_size 3, padding 1, padding_mode reflect: at the start y is off by 0.8",
                "BOFT, kernel_size 3, dilation 2: at the start y is (1, 4, 4, 4) for (1, 4, 2, 2)",
                "BOFT, kernel_size (3, 1): at the start y is RuntimeError",
            ],
        ),
        (
            "peft_channels_last.py",
            [
                "LoRA: works; channels last, forward works, merge works",
                "DoRA: works; channels last, forward RuntimeError, merge works",
                "HRA: works; channels last, forward RuntimeError, merge RuntimeError",
                "OFT: works; channels last, forward works, merge RuntimeError",
            ],
        ),
        (
            "peft_delora_half.py",
            [
                "a row of A of length 0.001, a column of B of 1: largest gradient to A inf, to B inf",
                "to B nan",
            ],
        ),
        (
            "peft_frod_rounding.py",
            ["256 inputs, bfloat16: off by 3.", "e-03, the base layer alone by 1."],
        ),
        (
            "peft_dense_rotation.py",
            [
                f"{name}, blocks of 2: 8 of 64 weights are not finite after the merge"
                for name in ("OFT", "BOFT", "RoAd")
            ],
        ),
        (
            "peft_supertuning_merge.py",
            [
                "row-major, safe_merge False: merged and unmerged layer differ by 0",
                "transposed, safe_merge False: merged and unmerged layer differ by 4",
                "transposed, safe_merge True: merged and unmerged layer differ by 0",
            ],
        ),
        (
            "peft_prefix_encoder_decoder.py",
            [
                "layers 1: self-attention of layer 0, 1, ... has the prefix of layer [0], cross-attention 0 tokens",
                "layers 3: self-attention of layer 0, 1, ... has the prefix of layer [0, 2, 1], cross-attention 0 tokens",
                "layer [0, 2, 0, 2], cross-attention 0 tokens; no gradient to layer [1, 3]",
            ],
        ),
        ("peft_loha_cores.py", ["hada_w1_a: 0.7", "hada_w2_a: 2", "e-08\n  hada_w2_a"]),
        ("peft_dora_groups.py", ["groups 1: all magnitudes are 1, the norms of the filters [1.0,", "[1.3226"]),
        ("peft_dora.py", ["(1, 2) from DoRA", "a zero row of W gives: nan"]),
        ("peft_boft_bias.py", ["bfloat16: y must be 47.25, is 16.0; the gradient to the bias must be 1, is 0.0"]),
        (
            "peft_oft_conv.py",
            [
                "kernel 1, {}: at the start y is off by 0, merged by 0",
                "kernel 3, {}: at the start y is off by 5.2, merged by 0",
                "kernel 1, {'groups': 2}: RuntimeError",
                "padded: RuntimeError",
            ],
        ),
        ("peft_oft_axes.py", ["four axes: RuntimeError"]),
        ("peft_loha_scale.py", ["the update is off by 3e-08"]),
        ("peft_fourierft_float32.py", ["in float64 the update is off by 6e-08 of its largest element"]),
        (
            "peft_c3a.py",
            [
                "by differences dx is off by 0.3, dy times the layer's matrix by 7e-06",
                "in float64 the update is off by 8e-08",
                "two adapters: merged and unmerged layer differ by 0.34",
                "empty batch: RuntimeError",
            ],
        ),
        (
            "peft_waveft_wavelets.py",
            ["coif4: 24 taps, off orthonormal by 0.02", "coif5: 48 taps", "50 of 74 names", "weight is (9, 9)"],
        ),
        (
            "peft_empty_batch.py",
            [
                "LoRA: (0, 4)",
                "GraLoRA: RuntimeError",
                "BD-LoRA: RuntimeError",
                "Poly: RuntimeError",
                "gradients of NaN: base_model.model.0.lily_B.default",
            ],
        ),
        ("peft_adaption_float32.py", ["in float64 what is added is off by 5e-08 of it"]),
        ("peft_psoft_rounding.py", ["the update must be 0.00260925; it is 0.00195312"]),
        ("peft_frod_basis.py", ["loaded here: y is off by 0.7"]),
        ("peft_psoft_signs.py", ["U S V is off by", "the update is off by 0."]),
        ("peft_hra_merge.py", ["reflected: off by 0.", "merged by peft: off by"]),
        ("peft_glora_base.py", ["the weight is 1.0 and so is y; y is 0.0; merged it is 1.0"]),
        ("peft_deft.py", ["bfloat16: y is 256.0, must be", "float64: y is", "off by 3e-08"]),
        ("peft_vector.py", ["QA-LoRA, a vector: ValueError", "aLoRA, a transposed view: RuntimeError"]),
        (
            "peft_xlora_rounding.py",
            ["X-LoRA: y must be 0.00130463, is 0.00195312", "OSF: ds must be 0.00130463, is 0.00195312"],
        ),
        (
            "peft_one_expert.py",
            [
                "experts 2, in 3, out 3: the first expert, whose weight is zero, computes B A transposed",
                "computes B A itself",
            ],
        ),
        ("peft_merge_first.py", ["ShiraConfig: in bfloat16 y is off by 100%", "MissConfig: in bfloat16 y is off by"]),
        (
            "peft_base_gradient.py",
            ["HRAConfig: the base weight has no gradient", "OFTConfig: the base weight has a gradient"],
        ),
        (
            "peft_tokens_bias.py",
            ["y - (x Wᵀ + bias) is -bias: True", "merged and unmerged layer agree: False"],
        ),
        pytest.param(
            "bitsandbytes_rows.py",
            ["(16, 96): 1245 of 1536", "(16, 128): 0 of 2048", "comes back as (2, 1)", "x (2,): Function MatMul4Bit"],
            marks=needs_avx512,
        ),
        ("bitsandbytes_strides.py", ["dequantize_4bit, codes with a stride: off by 4"]),
        ("bitsandbytes_subnormals.py", ["maximum 1.17549e-38: [0, 0]"]),
        pytest.param("bitsandbytes_subnormals.py", ["torch.bfloat16: the first value is -0"], marks=needs_avx512),
        ("bitsandbytes_int8_product.py", ["127 x 127 with scales of 1 is 1.0000180"]),
        pytest.param("bitsandbytes_int8_product.py", ["(4, 1) by (5, 1): 20 of 20 wrong"], marks=needs_avx512),
        ("torch_kron.py", ["transposed: RuntimeError", "contiguous True: RuntimeError"]),
        *(
            pytest.param(f"adapters_{script}.py", lines, marks=needs_adapters)
            for script, lines in {
                "average": ["0.500 in Average('first', 'second'), 0.500 with weights [1, 0]", "gives torch.float32"],
                "compacter": ["normal: deviation 0.26", "has no attribute 'weight'", "must be 6.1e-05, is 0"],
                "dora": [
                    "alpha / r = 1, bias 0: y off by 0.0, merged off by 0.0, after reset the weight off by 0.0",
                    "alpha / r = 4, bias 0: y off by 0.",
                    "bias 1: y off by 0.986,",
                    "a zero row gives nan",
                ],
                "eject": ["2 heads of keys: off by 0", "1 heads of keys: shape '[480]' is invalid"],
                "fusion": ["weights [0.48", "after a thousand: [0.11", "with residual_before by 1"],
                "glow": ["GLOW: The size of tensor a"],
                "hooks": ["given the norms of layers [2, 2, 2]"],
                "ia3": ["bias 1: merged and unmerged layer differ by 1", "x (3, 8): y (3, 3, 8)"],
                "mtl_lora": ["linear: cannot assign", "float16: NaN at the start: True", "(1, 8, 8)"],
                "reft": [
                    "NoReftConfig, torch.bfloat16: mat1 and mat2",
                    "of 5 tokens: off by 0",
                    "of 2 tokens: off by 2",
                ],
                "stack": ["second alone by 0e+00", "8 inputs and 16 outputs: mat1"],
                "vera": ["256 elements, 272 of VeRA are trained, must be 20", "no attribute 'lora_A'"],
            }.items()
        ),
    ],
)
def test_each_finding_is_there_without_refpeft(script, lines, capsys, caplog):
    """The script beside the page shows it; it imports nothing of refpeft."""
    assert "refpeft" not in (FINDINGS / script).read_text()
    caplog.set_level(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(FINDINGS / script))
    printed = capsys.readouterr().out
    for line in lines:
        assert line in printed, printed


@pytest.mark.parametrize("operation", ["hira.linear", "unilora.linear", "xlora.top", "lora.conv1d", "shira.linear"])
def test_peft_agrees_on_random_shapes_in_float64(operation):
    """Every output and gradient, element by element and in the norm; `benchmarks/evidence.py agrees` has all operations."""
    found = agree(Subject(plugins.backend("peft-apart")), operation, examples=6)
    assert found.problems >= 6
    assert found.disagreements == []
    assert max(found.shares.values()) <= 1
    assert max(found.normwise.values()) <= 1
    assert len(found.shares) >= 2


def test_a_backend_that_disagrees_is_found():
    """With what it says of its distance; what it does not take is counted."""
    found = agree(Subject(plugins.backend("peft")), "shira.linear", examples=6)
    assert "dweight" in found.disagreements[0]
    assert found.shares["dweight"] > 1
    assert found.normwise["dweight"] > 1
    outside = agree(Subject(plugins.backend("peft-apart")), "lora.conv1d", examples=6).outside
    assert outside.keys() == {"docs/findings/peft-lora-conv.md"}


def test_every_covered_call_has_its_page():
    """`peft-apart` turns calls away for a page that exists, on operations that peft has."""
    for backend, known in {"peft": findings, "adapters": adapterhub_findings}.items():
        if backend == "adapters" and not adapters:
            continue
        covered = {o: set(pages) for table in (known.COVERED, known.LACKING) for o, pages in table.items()}
        assert covered.keys() | known.FROZEN.keys() <= plugins.backend(backend).operations().keys()
        for pages in covered.values():
            for page in pages:
                assert (FINDINGS / f"{page}.md").is_file()
