"""Safetensors bytes: canonical, exact to the bit, understood by the official library, and never trusted."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy as official
from attacks import SAFETENSORS, one, pack, tensor
from hypothesis import given
from hypothesis import strategies as st

from refpeft.errors import DtypeError, FormatError
from refpeft.formats.safetensors import DTYPES, dumps, load, loads, read_message, save, scan, write_message

attacks = pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SAFETENSORS])
every_dtype = pytest.mark.parametrize("code", DTYPES)


@st.composite
def arrays(draw, codes=tuple(DTYPES)):
    """An array of any dtype and small shape, of any bits."""
    dtype = DTYPES[draw(st.sampled_from(codes))]
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    raw = bytes(byte & 1 for byte in raw) if dtype.kind == "b" else raw
    return np.frombuffer(bytearray(raw), dtype).reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def assert_same_bits(actual, expected):
    """Equal names, dtypes, shapes and bits."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert (actual[name].dtype, actual[name].shape) == (expected[name].dtype, expected[name].shape)
        assert actual[name].tobytes() == expected[name].tobytes()


def read_file(path):
    """The first message of a file, through a buffered stream that allocates whatever it is asked for."""
    with open(path, "rb") as stream:
        return read_message(stream, limit=1 << 62)


def is_a_sentence(error, about):
    """One line that starts with what it is about and ends with a full stop."""
    message = str(error.value)
    return message.startswith(f"{about}: ") and message.endswith(".") and "\n" not in message and len(message) < 1000


def test_a_file_is_these_bytes():
    """The whole file, byte by byte: length, padded header, metadata by key, tensors by dtype and then by name."""
    tensors = {"b": np.array([1], np.uint8), "a": np.array([[2.0]], np.float32), "c": np.array(True), "": np.uint8(3)}
    header = (
        '{"__metadata__":{"k":"ä","z":"\\""},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        '"":{"dtype":"U8","shape":[],"data_offsets":[4,5]},"b":{"dtype":"U8","shape":[1],"data_offsets":[5,6]},'
        '"c":{"dtype":"BOOL","shape":[],"data_offsets":[6,7]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    expected = struct.pack("<Q", len(header)) + header + b"\x00\x00\x00\x40\x03\x01\x01"
    assert dumps(tensors, {"z": '"', "k": "ä"}) == expected


def test_no_tensors_is_a_file_too():
    """The smallest file has an empty header and reads back as nothing."""
    assert dumps({}) == dumps({}, {}) == struct.pack("<Q", 8) + b"{}      "
    assert loads(dumps({})).tensors == {}


@given(st.dictionaries(names, arrays(), max_size=4), st.dictionaries(texts, texts, max_size=3))
def test_every_bit_survives(tensors, metadata):
    """Any bits of any dtype and shape, under any names, come back as they were, and rewrite to the same bytes."""
    data = dumps(tensors, metadata)
    archive = loads(data)
    assert_same_bits(archive.tensors, tensors)
    assert archive.metadata == metadata
    assert dumps(archive.tensors, archive.metadata) == data


@given(st.dictionaries(names, arrays(), max_size=4))
def test_the_order_of_insertion_does_not_matter(tensors):
    """The same tensors in reverse order give the same bytes."""
    assert dumps(dict(reversed(tensors.items()))) == dumps(tensors)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        (np.float64, [0x7FF0000000000001, 0xFFF8DEADBEEF0001]),
        (np.float32, [0x7F800001, 0xFFC0BEEF]),
        (np.float16, [0x7C01, 0xFE55]),
        (ml_dtypes.bfloat16, [0x7F81, 0xFFD5]),
    ],
)
def test_nan_payloads_survive(dtype, bits):
    """Signalling and quiet NaNs keep sign and payload, whether the array was big-endian or not."""
    raw = np.array(bits, f"<u{np.dtype(dtype).itemsize}")
    archive = loads(
        dumps({"native": raw.view(dtype), "swapped": raw.view(dtype).astype(np.dtype(dtype).newbyteorder(">"))})
    )
    for array in archive.tensors.values():
        assert array.view(raw.dtype).tolist() == bits


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2", ">i8", ">i4", ">i2", ">u8", ">u4", ">u2"])
def test_big_endian_arrays_are_stored_little_endian(dtype):
    """An array in foreign byte order gives the bytes of its native twin."""
    foreign = np.arange(6).astype(dtype).reshape(2, 3)
    assert dumps({"a": foreign}) == dumps({"a": foreign.astype(foreign.dtype.newbyteorder("<"))})


@pytest.mark.parametrize(
    "view",
    [
        np.arange(24.0).reshape(4, 6).T,
        np.arange(24.0)[::-3],
        np.arange(24.0).reshape(4, 6)[1:3, ::2],
        np.broadcast_to(np.arange(3.0), (4, 3)),
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    ],
    ids=["transposed", "reversed", "sliced", "broadcast", "Fortran"],
)
def test_any_layout_is_stored_in_c_order(view):
    """Strides leave no trace in the bytes."""
    assert dumps({"a": view}) == dumps({"a": view.copy(order="C")})


@every_dtype
def test_loaded_arrays_are_owned_and_writable(code):
    """Changing a loaded array changes nothing else."""
    data = bytearray(dumps({"a": np.zeros(3, DTYPES[code])}))
    array = loads(data).tensors["a"]
    array[0] = 1
    assert array.flags.owndata and array.flags.c_contiguous and array.flags.aligned
    assert loads(data).tensors["a"][0] == 0


@given(st.dictionaries(names, arrays([code for code in DTYPES if code != "BF16"]), max_size=4))
def test_the_official_library_writes_the_same_bytes(tensors):
    """Without metadata, the canonical file is the official library's file."""
    assert dumps(tensors) == official.save(
        {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    )


@given(st.dictionaries(names, arrays([code for code in DTYPES if code != "BF16"]), max_size=4))
def test_the_official_library_reads_what_was_written(tensors):
    """The official NumPy reader gives the same bits."""
    assert_same_bits(official.load(dumps(tensors, {"format": "pt"})), tensors)


def test_the_official_library_reads_metadata_and_shapes(tmp_path):
    """The official lazy reader agrees on metadata, dtype and shape, bfloat16 included."""
    save(tmp_path / "a.safetensors", {"w": np.ones((2, 3), ml_dtypes.bfloat16)}, {"format": "pt", "ä": "ö\n"})
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "ä": "ö\n"}
        assert (file.get_slice("w").get_dtype(), file.get_slice("w").get_shape()) == ("BF16", [2, 3])


def test_what_the_official_library_wrote_is_read(tmp_path):
    """A file by the official writer, metadata and all, gives the same bits."""
    tensors = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.float32([np.nan, -0.0]), "e": np.empty((0, 3))}
    official.save_file(tensors, tmp_path / "a.safetensors", {"k": "v"})
    archive = load(tmp_path / "a.safetensors")
    assert_same_bits(archive.tensors, tensors)
    assert archive.metadata == {"k": "v"}


def test_bfloat16_goes_to_torch_and_back():
    """All 65536 bit patterns of bfloat16 pass through safetensors.torch in both directions, in the same bytes."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load as torch_load
    from safetensors.torch import save as torch_save

    bits = np.arange(1 << 16, dtype=np.uint16)
    data = dumps({"w": bits.view(ml_dtypes.bfloat16)})
    loaded = torch_load(data)["w"]
    assert loaded.dtype == torch.bfloat16
    assert np.array_equal(loaded.view(torch.uint16).numpy(), bits)
    assert torch_save({"w": loaded}) == data
    assert np.array_equal(loads(torch_save({"w": loaded})).tensors["w"].view(np.uint16), bits)


def test_a_saved_file_holds_the_canonical_bytes(tmp_path):
    """Save writes what dumps gives, and load reads it back."""
    tensors = {"a": np.arange(3.0), "b": np.ones((2, 0), ml_dtypes.bfloat16)}
    save(tmp_path / "a.safetensors", tensors, {"k": "v"})
    assert (tmp_path / "a.safetensors").read_bytes() == dumps(tensors, {"k": "v"})
    assert_same_bits(load(tmp_path / "a.safetensors").tensors, tensors)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    """A tensor that cannot be written leaves the folder as it was."""
    path = tmp_path / "a.safetensors"
    save(path, {"a": np.arange(3)})
    with pytest.raises(DtypeError):
        save(path, {"a": np.array([1j])})
    assert load(path).tensors["a"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_scanned_file_is_read_tensor_by_tensor(tmp_path):
    """Names, shapes and dtypes are known without the data, and each tensor is a read-only view of the mapped file."""
    tensors = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.ones(2, ml_dtypes.bfloat16),
        "e": np.empty((0, 2)),
    }
    save(tmp_path / "a.safetensors", tensors, {"k": "v"})
    lazy = scan(tmp_path / "a.safetensors")
    assert sorted(lazy.names()) == sorted(lazy) == ["e", "h", "w"]
    assert "w" in lazy and "v" not in lazy
    assert lazy.metadata == {"k": "v"}
    assert (lazy.shape("w"), lazy.dtype("w"), lazy.dtype("h")) == ((2, 3), np.float32, ml_dtypes.bfloat16)
    assert_same_bits({name: lazy[name] for name in lazy}, tensors)
    assert not any(lazy[name].flags.writeable or lazy[name].flags.owndata for name in lazy)


def test_a_missing_tensor_is_named(tmp_path):
    """Asking for a tensor that is not there gives a sentence, not a KeyError."""
    save(tmp_path / "a.safetensors", {"w": np.ones(2)})
    lazy = scan(tmp_path / "a.safetensors")
    for ask in (lazy.shape, lazy.dtype, lazy.__getitem__):
        with pytest.raises(FormatError, match=r"there is no tensor 'v' among its 1\.$"):
            ask("v")


def test_a_header_of_any_length_is_read():
    """A foreign header that is not padded leaves the data unaligned, which changes no value."""
    for spaces in range(8):
        archive = loads(
            pack(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * spaces, struct.pack("<f", 1.5))
        )
        assert archive.tensors["a"].tolist() == [1.5]


def test_as_many_dimensions_as_numpy_has_are_read():
    """An array of 64 dimensions, NumPy's most, comes back."""
    assert loads(dumps({"a": np.ones((1,) * 64)})).tensors["a"].shape == (1,) * 64


def test_tensors_come_in_the_order_of_the_file():
    """The data decides the order, not the header."""
    data = pack({"late": tensor(data_offsets=(4, 8)), "early": tensor()}, struct.pack("<ff", 1, 2))
    assert {name: a.tolist() for name, a in loads(data).tensors.items()} == {"early": [1.0], "late": [2.0]}
    assert list(loads(data).tensors) == ["early", "late"]


def test_empty_tensors_may_lie_anywhere():
    """Tensors of no bytes share the offset at which another starts or ends."""
    entry = tensor(shape=(0, 5), data_offsets=(0, 0))
    archive = loads(pack({"a": tensor(), "z": entry, "y": tensor(shape=(0,), data_offsets=(4, 4))}, bytes(4)))
    assert {name: a.shape for name, a in archive.tensors.items()} == {"z": (0, 5), "a": (1,), "y": (0,)}


@attacks
def test_a_hostile_message_is_refused(data):
    """Each hostile file in memory gives one sentence about the message."""
    with pytest.raises(FormatError) as error:
        loads(data)
    assert is_a_sentence(error, "the safetensors message")


@attacks
def test_a_hostile_file_is_refused(data, tmp_path):
    """Each hostile file on disk gives one sentence that names the file."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as error:
        load(path)
    assert is_a_sentence(error, str(path))


@attacks
def test_a_hostile_stream_is_refused(data):
    """On a stream, a hostile file is refused, except that what trails it is the next message."""
    if not data:
        assert read_message(io.BytesIO(data)) is None
        return
    stream = io.BytesIO(data)
    with pytest.raises(FormatError) as error:
        while read_message(stream) is not None:
            pass
    assert is_a_sentence(error, "the safetensors message")


@pytest.mark.parametrize("name", ["header length of 2**63", "a terabyte that is not there", "offset of 2**63"])
@pytest.mark.parametrize(
    "read", [load, lambda path: loads(path.read_bytes()), read_file], ids=["file", "memory", "stream"]
)
def test_no_memory_is_allocated_for_a_lie(name, read, tmp_path):
    """Refusing a file that claims terabytes takes less than a few megabytes."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(dict(SAFETENSORS)[name])
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused():
    """A file cut anywhere is refused, in memory and on a stream."""
    data = dumps({"a": np.arange(3.0), "b": np.ones(2, ml_dtypes.bfloat16)}, {"k": "v"})
    for cut in range(1, len(data)):
        with pytest.raises(FormatError):
            loads(data[:cut])
        with pytest.raises(FormatError, match=r"the stream ended inside its (header length|header|tensors), expected"):
            read_message(io.BytesIO(data[:cut]))


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    """Whatever single byte changes, the file either reads or gives a FormatError."""
    raw = bytearray(
        dumps({"a": np.arange(3.0), "b": np.ones(2, ml_dtypes.bfloat16), "c": np.array([True])}, {"k": "v"})
    )
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(loads(raw).tensors) == 3
    except FormatError as error:
        assert str(error).startswith("the safetensors message: ")


@given(st.lists(st.dictionaries(names, arrays(), max_size=3), max_size=4))
def test_messages_follow_each_other_on_a_stream(messages):
    """What was written back to back is read back one by one, and then the stream is at its end."""
    stream = io.BytesIO()
    for index, message in enumerate(messages):
        write_message(stream, message, {"index": str(index)})
    stream.seek(0)
    for index, message in enumerate(messages):
        archive = read_message(stream)
        assert_same_bits(archive.tensors, message)
        assert archive.metadata == {"index": str(index)}
    assert read_message(stream) is None


class Dribble(io.BytesIO):
    """A stream that hands over at most seven bytes at a time, as a raw pipe may."""

    def read(self, size=-1):
        return super().read(min(size, 7))


def test_a_message_may_arrive_in_pieces():
    """Short reads are not the end of the stream."""
    message = {"w": np.arange(100.0)}
    stream = Dribble(dumps(message) * 2)
    assert_same_bits(read_message(stream).tensors, message)
    assert_same_bits(read_message(stream).tensors, message)
    assert read_message(stream) is None


def test_a_written_message_is_flushed():
    """The other end of a pipe sees the whole message at once, without the writer closing or flushing."""
    message = {"w": np.arange(100.0)}
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as source, open(writer, "wb") as sink:
        write_message(sink, message)
        assert_same_bits(read_message(source).tensors, message)


def test_a_message_over_the_limit_is_refused_before_it_is_read():
    """The limit counts every byte of the message, and exactly that many are admitted."""
    data = dumps({"w": np.zeros(100)})
    assert read_message(io.BytesIO(data), limit=len(data)).tensors["w"].shape == (100,)
    stream = io.BytesIO(data)
    with pytest.raises(FormatError, match=rf"its length is {len(data)} bytes, expected at most {len(data) - 1}\.$"):
        read_message(stream, limit=len(data) - 1)
    assert stream.tell() == len(data) - 800


@pytest.mark.parametrize("value", [np.array([1j]), np.array(["a"]), np.array([None]), np.array([1], "M8[s]")])
def test_a_dtype_the_format_does_not_know_is_refused(value):
    """The sentence names the tensor, its dtype and what is possible."""
    with pytest.raises(
        DtypeError, match=rf"^Tensor 'w' has dtype {value.dtype}".replace("[", r"\[") + r", expected .*\.$"
    ):
        dumps({"w": value})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 1])
def test_a_name_the_format_cannot_hold_is_refused(name):
    """A reserved name, a lone surrogate and a number are no names."""
    with pytest.raises(FormatError, match=r"^A tensor's name must be Unicode text other than __metadata__, got"):
        dumps({name: np.ones(1)})


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\udfff"}, {"a": None}])
def test_metadata_that_is_not_text_is_refused(metadata):
    """Metadata maps text to text when written, too."""
    with pytest.raises(FormatError, match=r"^The metadata to write must map text to text, got"):
        dumps({}, metadata)


def test_a_sentence_says_what_was_expected_and_what_came():
    """One message, word for word."""
    with pytest.raises(FormatError) as error:
        loads(one(shape=[2, 3]))
    assert str(error.value) == (
        "the safetensors message: tensor 'a' has 4 bytes, expected 24, because it is F32 of shape [2, 3]."
    )
