"""Arrays of any library become NumPy arrays, without that library being imported here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from refpeft.arrays import to_numpy
from refpeft.errors import DtypeError
from refpeft.numerics import BFLOAT16


class OnlyDLPack:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class OnlyArray:
    """An array that speaks ``__array__`` and nothing else."""

    def __array__(self, dtype=None, copy=None):
        return np.arange(3.0)


def test_a_numpy_array_comes_through_untouched():
    """The same object, views and bfloat16 included."""
    for array in (np.ones(3)[::2], np.zeros(2, BFLOAT16.dtype), np.array(1.0)):
        assert to_numpy(array) is array


@pytest.mark.parametrize("given", [[[1.0, 2.0], [3.0, 4.0]], ((1.0, 2.0), (3.0, 4.0))])
def test_nested_lists_are_float64_arrays(given):
    """As NumPy reads them; a single number is 0-d."""
    np.testing.assert_array_equal(to_numpy(given), [[1.0, 2.0], [3.0, 4.0]])
    assert to_numpy(given).dtype == np.float64
    assert to_numpy(2).shape == ()


def test_dlpack_alone_and_array_alone_suffice():
    """Either protocol brings the values."""
    np.testing.assert_array_equal(to_numpy(OnlyDLPack(np.arange(4.0))), np.arange(4.0))
    np.testing.assert_array_equal(to_numpy(OnlyArray()), np.arange(3.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "a list holds <U1 elements, where numbers are expected."),
        (None, "a NoneType holds object elements, where numbers are expected."),
        (object(), "a object holds object elements, where numbers are expected."),
    ],
)
def test_what_holds_no_numbers_is_refused(given, message):
    """A DtypeError that names the type that came."""
    with pytest.raises(DtypeError) as refused:
        to_numpy(given)
    assert str(refused.value) == message


def test_what_cannot_be_read_is_refused():
    """Ragged lists and arrays whose own conversion fails."""

    class Failing:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on another planet")

    for given, reason in (([[1.0], [1.0, 2.0]], "a list cannot be read"), (Failing(), "on another planet")):
        with pytest.raises(DtypeError, match=reason):
            to_numpy(given)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "int64", "uint8", "bool"])
def test_torch_tensors_of_every_dtype_keep_their_bits(dtype):
    """bfloat16 as ml_dtypes has it; 0-d, transposed, with gradients, conjugated."""
    torch = pytest.importorskip("torch")
    tensor = (torch.arange(12) % 5).reshape(3, 4).to(getattr(torch, dtype))
    for view in (tensor, tensor.T, tensor[1:, ::2], tensor[0, 0], tensor[:0]):
        got = to_numpy(view)
        assert got.dtype.name == dtype
        assert got.shape == tuple(view.shape)
        np.testing.assert_array_equal(got.astype(np.float64), np.array(view.tolist(), np.float64).reshape(got.shape))
    if tensor.is_floating_point():
        np.testing.assert_array_equal(to_numpy(tensor.clone().requires_grad_()), to_numpy(tensor))
        np.testing.assert_array_equal(to_numpy(torch.nn.Parameter(tensor)), to_numpy(tensor))


def test_a_tensor_type_of_another_library_is_a_tensor():
    """A subclass that torch does not own keeps gradients, and is detached all the same."""
    torch = pytest.importorskip("torch")
    quantised = type("Quantised", (torch.nn.Parameter,), {"__module__": "elsewhere"})(torch.ones(3))
    assert quantised.requires_grad
    np.testing.assert_array_equal(to_numpy(quantised), np.ones(3))


def test_a_tensor_that_numpy_has_no_dtype_for_is_refused():
    """float8 is a DtypeError, not torch's TypeError."""
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match="cannot be read as an array"):
        to_numpy(torch.ones(3).to(torch.float8_e4m3fn))


def test_jax_arrays_keep_their_values():
    """Where JAX is installed."""
    jax = pytest.importorskip("jax")
    assert to_numpy(jax.numpy.ones(3, "bfloat16")).dtype == BFLOAT16.dtype


def test_reading_arrays_imports_no_other_library():
    """refpeft.arrays, and all of refpeft, leaves torch unimported."""
    code = (
        "import sys, numpy, refpeft, refpeft.arrays; refpeft.arrays.to_numpy([1.0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
