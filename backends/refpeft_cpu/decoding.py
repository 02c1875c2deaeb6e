"""Decoding: a byte is looked up in a table, of one codeword or of two, and a block's numbers are multiplied by its scale."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft_cpu.arrays import in_order
from refpeft_cpu.chunks import share_blocks
from refpeft_cpu.memory import empty


def decoded(codes, table, scales, n, blocksize, dtype):
    """The first n numbers.

    Parameters
    ----------
    codes : uint8 array
    table : (256,) float32 or uint64 array
        What a byte stands for: a number, or a pair as `pairs_of` has it.
    scales : (ceil(n / blocksize),) float32 array
    n, blocksize : int
    dtype : str
        Of the result.
    """
    codes, scales = in_order(codes), in_order(scales)
    y, numbers = empty((n,), as_format(dtype).dtype, scales), table.itemsize // 4

    def decode(chunks, step):
        room = np.empty_like(scales, shape=(step, blocksize))
        places = np.empty_like(scales, np.intp, shape=step * blocksize // numbers)
        for start, stop in chunks:
            target = y[start * blocksize : stop * blocksize]
            direct = target.dtype == np.float32 and target.size == (stop - start) * blocksize
            values = target.reshape(-1, blocksize) if direct else room[: stop - start]
            bytes_ = codes[start * blocksize // numbers : stop * blocksize // numbers]
            found, at = values.reshape(-1).view(table.dtype), places[: bytes_.size]
            np.copyto(at, bytes_)
            np.take(table, at, out=found[: at.size], mode="clip")
            found[at.size :] = 0
            np.multiply(values, scales[start:stop, None], out=values)
            if not direct:
                target[...] = values.reshape(-1)[: target.size]

    share_blocks(decode, scales.size, blocksize)
    return y


def pairs_of(codewords, *, first_is_high=True) -> np.ndarray:
    """The two codewords of every byte, as one number of 64 bits: (256,) uint64 of (16,) numbers."""
    high, low = np.repeat(codewords, 16), np.tile(codewords, 16)
    order = [high, low] if first_is_high else [low, high]
    return np.stack(order, axis=1).astype(np.float32).view(np.uint64).reshape(-1)
