"""Shrinking: what is left of a failure is what makes it one, wherever in the arrays it lay."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.errors import RefpeftError
from refpeft.problem import Problem
from refpeft_conformance.resize import free_dims, with_attribute, without
from refpeft_conformance.shrink import shrink


def normal(*shape):
    """Float32 numbers, equal in every run."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def codes(size, at, code):
    """Random packed codes below 100, with another one at a place."""
    array = np.random.default_rng(0).integers(0, 100, size).astype(np.uint8)
    array[at] = code
    return array


def scales(size, at):
    """Block scales of 1, with a 7 at a place."""
    return np.where(np.arange(size) == at, np.float32(7), np.float32(1))


def dequantize(n=2000, blocksize=64, at=600):
    """A problem of nf4.dequantize with byte 0xB7 at a place, in a block whose scale is 7."""
    inputs = {
        "packed": codes((n + 1) // 2, at, 0xB7),
        "absmax": scales(-(-n // blocksize), 2 * at // blocksize),
    }
    return Problem.of("nf4.dequantize", inputs, {"n": n, "blocksize": blocksize, "dtype": "float32"})


def has_large_b7(problem):
    """Whether byte 0xB7 lies in a block whose scale is 7."""
    blocks = np.flatnonzero(problem.inputs["packed"] == 0xB7) * 2 // problem.attributes["blocksize"]
    return bool(np.any(problem.inputs["absmax"][blocks] == 7))


@pytest.mark.parametrize("at", [0, 31, 32, 600, 999])
def test_blocks_before_a_wrong_code_go_with_their_scales(at):
    """One weight of 2000, its byte and its scale are left, whichever byte it was."""
    smallest, minimal = shrink(dequantize(at=at), has_large_b7)
    assert minimal
    assert smallest.attributes == {"n": 1, "blocksize": 32, "dtype": "float32"}
    assert [a.tolist() for a in smallest.inputs.values()] == [[0xB7], [7]]


def test_nested_scales_go_with_their_codes():
    """Of 2000 doubly quantised scales in 8 blocks, one is left."""
    inputs = {"codes": codes(2000, 1300, 200), "absmax2": scales(8, 5), "offset": np.float32(0)}

    def fails(problem):
        blocks = np.flatnonzero(problem.inputs["codes"] == 200) // 256
        return bool(np.any(problem.inputs["absmax2"][blocks] == 7))

    smallest, minimal = shrink(Problem.of("nf4.double_dequantize", inputs, {}), fails)
    assert minimal
    assert [a.tolist() for a in smallest.inputs.values()] == [[200], [7], 0]


def test_rows_of_a_quantised_base_go_with_their_codes():
    """A base of 24 rows and 40 columns shrinks to one weight, though its codes are stored without rows."""
    inputs = {
        "x": normal(3, 40),
        "packed": codes(480, 300, 0xB7),
        "absmax": scales(30, 18),
        "a": normal(2, 40),
        "b": normal(24, 2),
    }
    problem = Problem.of("qlora.linear", inputs, {"scaling": 2.0, "blocksize": 32, "dtype": "float32"})
    smallest, minimal = shrink(problem, has_large_b7)
    assert minimal
    assert {n: smallest.dims[n] for n in ("n", "i", "o", "r")} == {"n": (), "i": 1, "o": 1, "r": 1}


def test_indices_move_with_the_rows_they_point_to():
    """Rows of a table that no index names go, from before the named one too."""
    ids = np.array([3, 41, 7])
    table = normal(50, 6)
    table[41, 4] = 9
    inputs = {"ids": ids, "weight": table, "a": normal(2, 50), "b": normal(6, 2)}
    problem = Problem.of("lora.embedding", inputs, {"scaling": 2.0})
    smallest, minimal = shrink(problem, lambda p: bool(np.any(p.inputs["weight"][p.inputs["ids"]] > 8)))
    assert minimal
    assert smallest.inputs["ids"].tolist() == 0
    assert smallest.inputs["weight"].shape == (1, 1)


def convolution(groups=3, kernel=3):
    """A problem of lora.conv2d with gradients."""
    inputs = {
        "x": normal(2, 2 * groups, 8, 8),
        "weight": normal(2 * groups, 2, kernel, kernel),
        "a": normal(groups, 2 * groups, kernel, kernel),
        "b": normal(2 * groups, 1, 1, 1),
    }
    attributes = {"scaling": 2.0, "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2), "groups": groups}
    problem = Problem.of("lora.conv2d", inputs, attributes)
    return problem.with_cotangents({"dy": np.ones(problem.result_specs["y"][0], np.float32)})


def test_a_convolution_shrinks_to_one_pixel_and_one_group():
    """Kernel, groups, stride and padding go too, though the cotangent's size is computed from them."""
    smallest, minimal = shrink(convolution(), lambda p: bool(p.cotangents) and bool(np.any(p.inputs["x"])))
    assert minimal
    assert {a.size for a in (*smallest.inputs.values(), *smallest.cotangents.values())} == {1}
    assert smallest.attributes["groups"] == 1
    assert smallest.attributes["padding"] == (0, 0)


def test_a_convolution_of_volumes_shrinks_too():
    """Its stride and padding are three numbers."""
    inputs = {
        "x": normal(1, 2, 3, 3, 3),
        "weight": normal(2, 2, 2, 2, 2),
        "a": normal(1, 2, 2, 2, 2),
        "b": normal(2, 1, 1, 1, 1),
    }
    attributes = {"scaling": 2.0, "stride": (2, 1, 2), "padding": (1, 0, 1), "dilation": (1, 1, 2), "groups": 1}
    smallest, minimal = shrink(Problem.of("lora.conv3d", inputs, attributes), lambda p: bool(np.any(p.inputs["x"])))
    assert minimal
    assert {a.size for a in smallest.inputs.values()} == {1}
    assert (smallest.attributes["stride"], smallest.attributes["padding"]) == ((1, 1, 1), (0, 0, 0))


def test_channels_go_with_their_group():
    """Removing the second of three groups removes its channels of input and output."""
    problem = convolution()
    smaller = without(problem, "groups", 1, 2)
    np.testing.assert_array_equal(smaller.inputs["x"], problem.inputs["x"][:, [0, 1, 4, 5]])
    np.testing.assert_array_equal(smaller.inputs["weight"], problem.inputs["weight"][[0, 1, 4, 5]])


def test_what_grows_is_filled_with_its_last_entry():
    """Without padding the cotangent is cut; of twice as many blocks the new ones have the last one's scale."""
    assert with_attribute(convolution(), "padding", (0, 1)).cotangents["dy"].shape[2] == 3
    halved = without(dequantize(n=100, at=40), "blocksize", 32, 64)
    assert halved.inputs["absmax"].tolist() == [1, 7, 7, 7]


def test_only_dims_that_nothing_determines_are_reduced():
    """Channels follow from groups; og of o = og groups is found though no shape has it."""
    assert {"n", "h", "w", "cg", "rg", "og", "groups", "kh", "kw"} == set(free_dims(convolution()))


def test_a_removal_that_leaves_no_problem_is_refused():
    """The caller learns it as one of refpeft's errors."""
    with pytest.raises(RefpeftError):
        without(dequantize(), "blocksize", 0, 1)


def test_shrinking_stops_when_tries_or_time_run_out_and_says_so():
    """A problem cut short still fails, and is not called minimal."""
    problem = Problem.of("nn.linear", {"x": normal(6, 7), "weight": normal(5, 7)}, {})
    for limit in ({"tries": 4}, {"seconds": -1.0}):
        smaller, minimal = shrink(problem, lambda p: bool(np.any(p.inputs["x"])), **limit)
        assert not minimal
        assert np.any(smaller.inputs["x"])
    smallest, minimal = shrink(problem, lambda p: bool(np.any(p.inputs["x"])))
    assert minimal
    assert smallest.inputs["x"].shape == (1,)
    assert np.count_nonzero(smallest.inputs["x"]) == 1
    assert not np.any(smallest.inputs["weight"])


def test_a_simpler_value_that_allows_another_reduction_gets_it():
    """A second number is needed only until the first is 1: minimal is said when nothing at all is left to do."""
    problem = Problem.of("nn.linear", {"x": np.array([3.0, 5.0]), "weight": np.zeros((1, 2))}, {})

    def fails(problem):
        x = problem.inputs["x"]
        return bool(x[0] == 1 or (len(x) == 2 and x[0] and x[1]))

    smallest, minimal = shrink(problem, fails)
    assert minimal
    assert smallest.inputs["x"].tolist() == [1]
