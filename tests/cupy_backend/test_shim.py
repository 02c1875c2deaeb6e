"""The host shim keeps CUDA's rules: what a kernel must not do is an error that says where, and what it may do works."""

import numpy as np
import pytest

from refpeft_cupy.host.run import KernelError, run
from refpeft_cupy.kernel import FOLDER, Kernel

pytestmark = pytest.mark.shim


def launched(body, given=(1, 2, 3, 4), *, blocks=1, threads=32, size=4, shared=""):
    """What a kernel with this body makes of ``x``, as the float32 array ``y``."""
    source = f'extern "C" __global__ void trial(const float* x, float* y, int n) {{ {shared} const int t = threadIdx.x; {body} }}'
    y = np.zeros(size, np.float32)
    header = (FOLDER / "refpeft.cuh").read_text().replace("#pragma once", "")
    x = np.array(given, np.float32)
    run(Kernel("trial", "float32", header + source), (blocks, 1, 1), (threads, 1, 1), [x, y, np.int32(size)])
    return y.tolist()


def test_threads_and_blocks_know_their_places():
    """Each thread of each block runs once."""
    assert launched(
        "int k = blockIdx.x * blockDim.x + t; if (k < n) y[k] = 10 * blockIdx.x + t;", blocks=2, threads=32, size=40
    )[31:34] == [31, 10, 11]


def test_a_barrier_makes_what_was_written_before_it_seen_after_it():
    """Each thread reads its neighbour's element."""
    body = "if (t < n) s[t] = x[t]; __syncthreads(); if (t < n) y[t] = s[(t + 1) % n];"
    assert launched(body, shared="__shared__ float s[4];") == [2, 3, 4, 1]


def test_without_the_barrier_the_orders_disagree():
    """A neighbour that has not written yet leaves NaN."""
    with pytest.raises(
        KernelError, match="element 0 of y is 5 with threads in reverse order, but nan in forward order: a race"
    ):
        launched(
            "if (t < n) s[t] = x[t]; if (t < n) y[t] = t == 0 ? s[n - 1] + 1 : s[t];", shared="__shared__ float s[4];"
        )


def test_a_warp_may_be_far_ahead_of_another():
    """What it writes behind its next shuffle is there before others have read what was: two maxima in one place."""
    body = """
        float v = t < n ? x[t] : 0;
        if (t == 0) s[0] = v;
        __syncthreads();
        float first = s[0];
        v = __shfl_xor_sync(0xffffffff, v, 1);
        if (t == 0) s[0] = v;
        if (t % 32 == 0) y[t / 32] = first;"""
    with pytest.raises(KernelError, match="element 1 of y is 1 with threads in reverse order, but 2 in forward order"):
        launched(body, threads=64, size=2, shared="__shared__ float s[1];")
    apart = body.replace("v = __shfl", "__syncthreads(); v = __shfl")
    assert launched(apart, threads=64, size=2, shared="__shared__ float s[1];") == [1, 1]


def test_shuffles_go_round_the_warp():
    """The sum of 32 lanes by five exchanges, the same in every lane; down, up, and one lane's value for all."""
    xor = "float v = t; for (int d = 16; d; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d); if (t < n) y[t] = v;"
    assert launched(xor) == [496] * 4
    assert launched("float v = __shfl_down_sync(0xffffffff, (float)t, 3); if (t < n) y[t] = v;") == [3, 4, 5, 6]
    assert launched("float v = __shfl_up_sync(0xffffffff, (float)t, 1); if (t < n) y[t] = v;") == [0, 0, 1, 2]
    assert launched("double v = __shfl_sync(0xffffffff, (double)t, 7); if (t < n) y[t] = (float)v;") == [7] * 4
    assert launched("unsigned v = __ballot_sync(0xffffffff, t % 2); if (t < n) y[t] = (float)(v >> 24);") == [170] * 4


def test_lanes_apart_may_shuffle_among_themselves():
    """Two halves of a warp, each under its own mask."""
    body = "unsigned m = t < 16 ? 0xffff : 0xffff0000; float v = t; for (int d = 8; d; d /= 2) v += __shfl_xor_sync(m, v, d);"
    assert launched(body + "if (t % 16 == 0) y[t / 16] = v;", size=2) == [120, 376]


def test_atomics_add_up():
    """Whatever the order, where the sum is exact."""
    body = "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(s, x[t]); __syncthreads(); if (t < n) y[t] = s[0];"
    assert launched(body, range(32), shared="__shared__ float s[1];") == [496] * 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t < 5) __syncthreads();", r"it ended while others of its block wait at a barrier"),
        ("if (t < 5) __syncthreads();\nelse __syncthreads();", r"waits at another barrier than others of its block"),
        ("__shfl_sync(0xfffe, 1, 0);", r"thread \d+: it shuffles under a mask without its own lane"),
        ("if (t) __shfl_sync(0xffffffff, 1, 0);", r"waits in a shuffle for a lane of its mask that does not come"),
        ("y[n] = 1;", r"forward order, block \(0, 0, 0\), thread 0: it touches memory 0 bytes behind the end of y"),
        (
            "if (t < n) y[t] = x[t - 1];",
            r"reverse order, block \(0, 0, 0\), thread \d+: it touches memory 4 bytes before the beginning of x",
        ),
        ("if (t < n) y[t] = 1; if (t == 0) y[-1] = 1;", r"forward order: it writes 4 bytes before the beginning of y"),
        ("((float*)x)[1] = 1;", r"it writes into x, which is an input"),
        ("*(double*)(y + 1) = x[0];", r"an access that is not aligned"),
        ("float s[4] = {}; y[0] = s[n + t];", r"goes beyond an array"),
        ("*(int*)64 = 1;", r"it touches memory at 0x40, outside of all arguments"),
        (
            "if (t < n - 1) y[t] = 1;",
            r"element 3 of y is nan with threads in reverse order, but another nan in forward order",
        ),
    ],
)
def test_each_broken_rule_is_named(body, message):
    """With the order of threads, the block and the thread."""
    with pytest.raises(KernelError, match=message):
        launched(body + ("" if "y[" in body else "if (t < n) y[t] = 0;"))


def test_after_a_fault_kernels_run_as_before():
    """Fibers that were left in the middle are begun anew."""
    with pytest.raises(KernelError):
        launched("y[n + t] = 1; __syncthreads();")
    assert launched("if (t < n) y[t] = x[t];") == [1, 2, 3, 4]


def test_a_block_is_as_large_as_cudas():
    """More than 1024 threads are refused."""
    with pytest.raises(KernelError, match="a block has 1024 threads at most, but 1056 are asked for"):
        launched("", threads=1056)
