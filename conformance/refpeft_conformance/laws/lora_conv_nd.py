"""Laws of LoRA on convolutions in one and in three dimensions."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, without
from refpeft_conformance.strategies import is_exact


def _starts_at_the_base(operation: str) -> None:
    @law(operation, "a zero a and a zero b both leave the base layer", regime="exact")
    def _(subject, problem, observed):
        first, second = (subject.run(without(problem, n))["y"] for n in ("a", "b"))
        equal("zero a against zero b", first, second, observed)


_starts_at_the_base("lora.conv1d")
_starts_at_the_base("lora.conv3d")


def _seen_from_two(operation: str, expand, attributes) -> None:
    """The law that the layer is lora.conv2d's on arrays with axes of length one."""

    @law(operation, "it is the layer of images along axes of length one", regime="exact", needs=("lora.conv2d",))
    def _(subject, problem, observed):
        whole = problem.replace(cotangents={})
        arrays = expand(whole)
        if arrays is None:
            return
        image = Problem.of("lora.conv2d", arrays, attributes(whole.attributes), {}, problem.dtype)
        precision = subject.precision(problem.dtype)
        if is_exact(whole, precision) and is_exact(image, precision):
            got = subject.run(whole)["y"]
            equal("as images", got.reshape(-1), subject.run(image)["y"].reshape(-1), observed)


def _as_columns(problem):
    """Sequences down the rows of an image one column wide."""
    return {n: x if n == "bias" else np.expand_dims(x, 3) for n, x in problem.inputs.items()}


def _without_depth(problem):
    """Volumes of depth one under kernels of depth one, without padding in depth; None for others."""
    i = problem.inputs
    if i["x"].shape[2] != 1 or i["weight"].shape[2] != 1 or problem.attributes["padding"][0]:
        return None
    return {n: x if n == "bias" else x[:, :, 0] for n, x in i.items()}


_seen_from_two(
    "lora.conv1d",
    _as_columns,
    lambda a: {
        "scaling": a["scaling"],
        "groups": a["groups"],
        "stride": (a["stride"], 1),
        "padding": (a["padding"], 0),
        "dilation": (a["dilation"], 1),
    },
)
_seen_from_two(
    "lora.conv3d",
    _without_depth,
    lambda a: {n: a[n] for n in ("scaling", "groups")} | {n: a[n][1:] for n in ("stride", "padding", "dilation")},
)


@law("lora.conv3d", "depth may change places with rows", regime="exact")
def _(subject, problem, observed):
    """The two axes swapped everywhere give the result with them swapped, bit for bit."""

    def swapped(values):
        return (values[1], values[0], values[2])

    whole = problem.replace(cotangents={})
    arrays = {n: x if x.ndim == 1 else x.swapaxes(2, 3).copy() for n, x in whole.inputs.items()}
    attributes = {n: swapped(v) if isinstance(v, tuple) else v for n, v in whole.attributes.items()}
    other = Problem.of("lora.conv3d", arrays, attributes, {}, problem.dtype)
    equal("swapped", subject.run(other)["y"].swapaxes(2, 3), subject.run(whole)["y"], observed)
