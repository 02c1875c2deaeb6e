"""A file is written whole or not at all."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from refpeft.errors import FormatError
from refpeft.files import atomic_file, atomic_write, forget, map_file


def test_written_bytes_are_read_back(tmp_path):
    """The file holds exactly the bytes given, and it is the only thing in the folder."""
    atomic_write(tmp_path / "a.bin", b"\x00\xff\r\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff\r\n"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_name_appears_only_after_the_block(tmp_path):
    """While the block runs, the old content stands under the name."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, error, before):
    """Whatever the block raises comes out, the old file stands, and no temporary file is left."""
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == ({"a.bin": before} if before else {})


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    """A temporary file that cannot be renamed is removed."""

    def fail(*_):
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        atomic_write(tmp_path / "a.bin", b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    """A new file has the permissions that open gives, and a replaced one keeps its own."""
    (tmp_path / "ordinary").touch()
    atomic_write(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    atomic_write(tmp_path / "new", b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights elsewhere")
def test_a_symbolic_link_is_followed(tmp_path):
    """Writing through a link replaces the file it points to and keeps the link."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    atomic_write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"x"


def test_a_long_name_is_written(tmp_path):
    """A name of the longest length a file system admits leaves room for the temporary one."""
    atomic_write(tmp_path / ("a" * 255), b"x")
    assert (tmp_path / ("a" * 255)).read_bytes() == b"x"


def test_a_missing_folder_is_named(tmp_path):
    """The sentence names the folder that does not exist."""
    with pytest.raises(FormatError, match=r"the folder .*gone does not exist\.$"):
        atomic_write(tmp_path / "gone" / "a.bin", b"")


@pytest.mark.parametrize("name", [None, "another"])
def test_a_full_disk_says_which_file(tmp_path, name):
    """The operating system's error has the name where it had none, and nothing is left."""
    with pytest.raises(OSError, match="No space") as raised, atomic_file(tmp_path / "a.bin"):
        raise OSError(28, "No space left on device", name)
    assert raised.value.filename == (name or str(tmp_path / "a.bin"))
    assert not os.listdir(tmp_path)


def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    """A folder or a device under the name is refused, never renamed over."""
    with pytest.raises(FormatError, match=r"is not a regular file\.$"):
        atomic_write(tmp_path, b"")
    with pytest.raises(FormatError, match=r"is not a regular file\.$"):
        atomic_write(os.devnull, b"")
    assert not os.path.isfile(os.devnull)


def test_what_is_forgotten_is_read_again(tmp_path):
    """A mapped file has its bytes after `forget` as before; an array of its own is left alone."""
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 64)
    mapped, own = map_file(tmp_path / "a.bin"), np.arange(5)
    before = mapped.tobytes()
    for array in (mapped, mapped[100:].reshape(-1, 4), own):
        forget(array)
    assert mapped.tobytes() == before
    assert own.tolist() == [0, 1, 2, 3, 4]
