"""GGUF files and the weight matrices of any model file."""

from __future__ import annotations

import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from attacks import GGUF, array, counts, gguf_tensor, pair, text
from attacks import gguf as gguf_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refpeft.errors import CapabilityError, FormatError, RefpeftError
from refpeft.formats import safetensors
from refpeft.formats.gguf import scan
from refpeft.formats.weights import matrices

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType

WEIGHTS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


def written(path):
    """A small GGUF file by the official writer, and what it holds as float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "ä", "<s>"])
    writer.add_token_scores([0.0, -1.5, 2.0])
    expected = {}
    for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0):
        raw = gguf.quantize(WEIGHTS, kind)
        writer.add_tensor(f"blk.0.{kind.name}.weight", raw, raw_dtype=kind)
        expected[f"blk.0.{kind.name}.weight"] = gguf.dequantize(raw, kind).reshape(WEIGHTS.shape)
    writer.add_tensor("blk.0.norm.weight", np.float32([1.0, 2.0, 3.0]))
    expected["blk.0.norm.weight"] = np.float32([1.0, 2.0, 3.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def assert_equal(lazy, expected):
    """The same names, shapes and float32 values."""
    assert lazy.names() == list(expected)
    for name, value in expected.items():
        assert (lazy.shape(name), lazy.dtype(name)) == (value.shape, np.float32)
        assert lazy[name].dtype == np.float32
        assert np.array_equal(lazy[name], value)


def test_a_file_of_the_official_writer_is_read(tmp_path):
    """Every encoding gives the package's own float32 values, in row-major shape."""
    expected = written(tmp_path / "a.gguf")
    assert_equal(scan(tmp_path / "a.gguf"), expected)


def test_some_rows_are_read_without_the_others(tmp_path):
    """In every encoding they are those of the whole matrix, none are an empty one, and forgetting changes nothing."""
    expected = written(tmp_path / "a.gguf")
    lazy = scan(tmp_path / "a.gguf")
    for name in (name for name in expected if lazy.shape(name) == WEIGHTS.shape):
        for first, last in ((0, 4), (1, 3), (2, 2)):
            assert np.array_equal(lazy.rows(name, first, last), expected[name][first:last])
            lazy.forget()


def test_metadata_is_read(tmp_path):
    """Text, numbers, lists of text and arrays of numbers come as Python and NumPy have them."""
    written(tmp_path / "a.gguf")
    metadata = scan(tmp_path / "a.gguf").metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["tokenizer.ggml.tokens"] == ["a", "ä", "<s>"]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.5, 2.0]


def test_every_value_type_is_read(tmp_path):
    """The thirteen types of the format, an array of arrays among them, and text that is not UTF-8."""
    values = {
        0: ("B", 200),
        1: ("b", -3),
        2: ("H", 60000),
        3: ("h", -3),
        4: ("I", 1 << 31),
        5: ("i", -3),
        6: ("f", 0.5),
    }
    values |= {7: ("?", True), 10: ("Q", 1 << 63), 11: ("q", -3), 12: ("d", 0.1)}
    pairs = [pair(kind, struct.pack(f"<{code}", value), b"%d" % kind) for kind, (code, value) in values.items()]
    pairs += [
        pair(8, text(b"\xff"), b"8"),
        pair(9, array(9, 2, array(7, 2, b"\x00\x01") + array(8, 1, text(b"x"))), b"9"),
    ]
    (tmp_path / "a.gguf").write_bytes(gguf_file(pairs=tuple(pairs)))
    metadata = scan(tmp_path / "a.gguf").metadata
    assert {kind: metadata[str(kind)] for kind in values} == {kind: value for kind, (_, value) in values.items()}
    assert metadata["8"] == "\udcff"
    assert [list(inner) for inner in metadata["9"]] == [[False, True], ["x"]]


def test_another_alignment_is_honoured(tmp_path):
    """The data starts at the alignment that the file declares."""
    head = gguf_file(gguf_tensor(), pairs=(pair(4, struct.pack("<I", 256), b"general.alignment"),), data=b"")
    (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 256) + struct.pack("<f", 1.5))
    assert scan(tmp_path / "a.gguf")["a"].tolist() == [1.5]


def test_wide_and_integer_tensors_keep_their_dtype(tmp_path):
    """float64 and integers are not squeezed into float32."""
    tensors = (gguf_tensor(b"d", (2,), Kind.F64), gguf_tensor(b"i", (2,), Kind.I16, 32))
    (tmp_path / "a.gguf").write_bytes(gguf_file(*tensors, data=struct.pack("<dd16xhh", 0.1, 0.2, -1, 7)))
    lazy = scan(tmp_path / "a.gguf")
    assert (lazy.dtype("d"), lazy["d"].tolist()) == (np.float64, [0.1, 0.2])
    assert (lazy.dtype("i"), lazy["i"].tolist()) == (np.int16, [-1, 7])


def test_scalars_and_empty_tensors_are_read(tmp_path):
    """No dimensions is a scalar, and a dimension of zero is an empty tensor, quantised or not."""
    tensors = (gguf_tensor(b"s", ()), gguf_tensor(b"e", (32, 0), Kind.Q8_0, 32))
    (tmp_path / "a.gguf").write_bytes(gguf_file(*tensors, data=struct.pack("<f28x", 1.5)))
    lazy = scan(tmp_path / "a.gguf")
    assert lazy["s"].shape == () and lazy["s"] == 1.5
    assert lazy["e"].shape == (0, 32) and lazy["e"].dtype == np.float32


def test_infinite_scales_give_nan_and_no_warning(tmp_path):
    """A damaged scale shows in the values, not as an exception."""
    (tmp_path / "a.gguf").write_bytes(gguf_file(gguf_tensor(b"a", (32,), Kind.Q8_0), data=b"\x00\x7c" + bytes(32)))
    assert np.isnan(scan(tmp_path / "a.gguf")["a"]).all()


def test_an_encoding_the_package_cannot_dequantise_is_named(tmp_path):
    """The file is readable all the same, only this tensor is not."""
    (tmp_path / "a.gguf").write_bytes(gguf_file(gguf_tensor(b"a", (32,), Kind.Q8_1), data=bytes(40)))
    lazy = scan(tmp_path / "a.gguf")
    with pytest.raises(CapabilityError, match=r"tensor 'a' is stored as Q8_1, which the installed gguf package cannot"):
        lazy["a"]


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    """Without the gguf package, the sentence says how to install it."""
    written(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CapabilityError, match=r"run pip install 'refpeft\[gguf\]'\.$"):
        scan(tmp_path / "a.gguf")


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in GGUF])
def test_a_hostile_file_is_refused(data, tmp_path):
    """Each hostile file gives one sentence that names the file."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as error:
        scan(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message


def test_an_absurd_count_is_refused_as_such(tmp_path):
    """The sentence is about the count, not about whichever tensor would be the first to be missing."""
    (tmp_path / "a.gguf").write_bytes(counts(1000, 0))
    with pytest.raises(
        FormatError, match=r"the number of tensors is 1000, expected at most 3 in a file of its size\.$"
    ):
        scan(tmp_path / "a.gguf")


def test_every_truncation_is_refused_or_read(tmp_path):
    """Cut at every 97th byte, a file is refused until its last tensor is whole, and from there reads as before."""
    path = tmp_path / "a.gguf"
    expected = written(path)
    whole = path.read_bytes()
    end = whole.rindex(np.float32([1.0, 2.0, 3.0]).tobytes()) + 12
    for cut in [*range(0, len(whole), 97), end - 1, end]:
        path.write_bytes(whole[:cut])
        if cut < end:
            with pytest.raises(FormatError):
                scan(path)
        else:
            assert_equal(scan(path), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path, data):
    """Whatever single byte changes, the file reads, tensor by tensor, or gives one of our errors."""
    if not (tmp_path / "a.gguf").exists():
        written(tmp_path / "a.gguf")
    raw = bytearray((tmp_path / "a.gguf").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "b.gguf").write_bytes(raw)
    try:
        lazy = scan(tmp_path / "b.gguf")
        assert all(lazy[name].shape == lazy.shape(name) for name in lazy)
    except RefpeftError as error:
        assert str(error).startswith(str(tmp_path / "b.gguf"))


@pytest.fixture
def model(tmp_path):
    """A safetensors file with matrices and other tensors."""
    path = tmp_path / "model.safetensors"
    tensors = {
        "layers.0.q.weight": WEIGHTS,
        "layers.0.k.weight": WEIGHTS.astype(ml_dtypes.bfloat16),
        "layers.0.norm.weight": np.ones(4, np.float16),
        "layers.0.row": np.ones((1, 4), np.float64),
        "layers.0.codes": np.ones((4, 4), np.uint8),
        "layers.1.q.weight": WEIGHTS.astype(np.float64),
    }
    safetensors.save(path, tensors)
    return path


def test_matrices_are_the_floating_matrices(model):
    """Vectors, integer tensors and single rows are left out; each matrix keeps its dtype."""
    found = {name: (array.shape, array.dtype.name) for name, array in matrices(str(model))}
    assert found == {
        "layers.0.q.weight": ((4, 64), "float32"),
        "layers.0.k.weight": ((4, 64), "bfloat16"),
        "layers.1.q.weight": ((4, 64), "float64"),
    }


def test_the_smallest_matrix_can_be_chosen(model):
    """The minimum holds for rows and columns alike."""
    assert len(list(matrices(str(model), minimum=1))) == 4
    assert len(list(matrices(str(model), minimum=4))) == 3


def test_a_glob_selects_by_name(model):
    """The glob applies to the whole name, and an empty one selects everything."""
    assert [name for name, _ in matrices(f"{model}:layers.0.*")] == ["layers.0.q.weight", "layers.0.k.weight"]
    assert [name for name, _ in matrices(f"{model}:*.[k]*")] == ["layers.0.k.weight"]
    assert len(list(matrices(f"{model}:"))) == 3


def test_the_content_tells_the_format(tmp_path):
    """A GGUF file under any name is read as one."""
    expected = written(tmp_path / "model.bin")
    found = dict(matrices(f"{tmp_path / 'model.bin'}:*.Q?_0.*"))
    assert list(found) == ["blk.0.Q8_0.weight", "blk.0.Q4_0.weight"]
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_names_may_contain_colons(tmp_path):
    """The longest part of the argument that is a file is the file."""
    safetensors.save(tmp_path / "a", {"w": WEIGHTS})
    safetensors.save(tmp_path / "a:b", {"x:y": WEIGHTS, "z": WEIGHTS})
    assert [name for name, _ in matrices(f"{tmp_path / 'a:b'}:x:*")] == ["x:y"]
    assert [name for name, _ in matrices(str(tmp_path / "a:b"))] == ["x:y", "z"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("{folder}/gone:*", r"The weights file '.*gone' does not exist\."),
        (":*", r"The weights file '' does not exist\."),
        ("", r"The weights file '' does not exist\."),
        ("{folder}", r"The weights '.*' must be a safetensors or GGUF file, got a folder or a device\."),
        ("{model}:nothing*", r".*: no tensor matches 'nothing\*', expected at least one of its 6\."),
        (
            "{model}:*norm*",
            r".*: none of the 1 tensors that match '\*norm\*' is a floating-point matrix, expected .*\.",
        ),
    ],
)
def test_a_specification_that_selects_nothing_is_refused(spec, sentence, model):
    """Each mistake gives its sentence at the call, before the first matrix is asked for."""
    with pytest.raises(FormatError, match=f"^{sentence}$"):
        matrices(spec.format(folder=model.parent, model=model))
