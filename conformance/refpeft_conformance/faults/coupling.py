"""Mistakes with coupled halves: what each reads, and the order in which they move."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs

_COUPLE = {"operations": "nice.couple"}
_UPS = ("up", "up_bias")


def _networks(problem, name: str, factor: float):
    """The outer matrix and bias of one network, times a factor."""
    found = {f"{name}_{n}" for n in _UPS} & problem.inputs.keys()
    return {n: factor * wide(problem.inputs[n]) for n in found}


def _half(results, moved, first: bool):
    """The results with one half of y from another run."""
    y, half = wide(results["y"]).copy(), results["y"].shape[-1] // 2
    where = np.s_[..., :half] if first else np.s_[..., half:]
    y[where] = wide(moved["y"])[where]
    return results | {"y": y}


@fault("coupling", "both halves read the input", "inverse=", **_COUPLE)
def _(problem, run):
    """y2 = x2 + G(x1): what two parallel adapters give."""
    inverse = problem.attributes["inverse"]
    still = run(with_inputs(problem, **_networks(problem, "g" if inverse else "f", 0.0)))
    return _half(run(problem), still, first=inverse)


@fault("coupling", "the inverse in the order of the forward", "inverse=", **_COUPLE)
def _(problem, run):
    """x1 = y1 - F(y2), then x2 = y2 - G(x1)."""
    if not problem.attributes["inverse"]:
        return run(problem)
    minus = _networks(problem, "f", -1.0) | _networks(problem, "g", -1.0)
    other = run(with_attributes(with_inputs(problem, **minus), inverse=False))
    return other | {n: -wide(other[n]) for n in other if n.startswith("d") and n.partition("_")[2] in _UPS}


@fault("coupling", "the inverse adds", "inverse=", **_COUPLE)
def _(problem, run):
    if not problem.attributes["inverse"]:
        return run(problem)
    return run(with_inputs(problem, **_networks(problem, "f", -1.0), **_networks(problem, "g", -1.0)))


@fault("coupling", "forward and inverse swapped", "inverse=", **_COUPLE)
def _(problem, run):
    return run(with_attributes(problem, inverse=not problem.attributes["inverse"]))


@fault("coupling", "halves swapped", "inverse=", **_COUPLE)
def _(problem, run):
    """Where they are as long: the second moves first."""
    x, half = problem.inputs["x"], problem.inputs["x"].shape[-1] // 2
    if x.shape[-1] % 2:
        return run(problem)
    results = run(with_inputs(problem, x=np.roll(x, half, axis=-1)))
    return results | {n: np.roll(results[n], half, axis=-1) for n in ("y", "dx") if n in results}


@fault("coupling", "the second network passes no gradient to the first", "df_down", **_COUPLE)
def _(problem, run):
    """As if y1, or x2, were detached."""
    results = run(problem)
    inverse = problem.attributes["inverse"]
    silent = run(with_inputs(problem, **_networks(problem, "f" if inverse else "g", 0.0)))
    first = "dg_" if inverse else "df_"
    return results | {n: silent[n] for n in results if n.startswith(first)}


@fault("coupling", "relu in the place of another activation", "inverse=", **_COUPLE)
def _(problem, run):
    return run(with_attributes(problem, activation="relu"))
