"""Mistakes with factors brought to norm one."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


def _strengths(problem, la=None, lb=None):
    """c with these norms, or the right ones."""
    a, b, floor = wide(problem.inputs["a"]), wide(problem.inputs["b"]), problem.attributes["floor"]
    la = np.linalg.norm(a, axis=1) if la is None else la
    lb = np.linalg.norm(b, axis=0) if lb is None else lb
    return wide(problem.inputs["boundary"]) / len(a) / (np.maximum(la, floor) * np.maximum(lb, floor))


def _with(problem, run, c):
    """The output with other strengths."""
    i, results = {n: wide(a) for n, a in problem.inputs.items()}, run(problem)
    scale = i.get("norms", np.ones(i["a"].shape[1]))
    delta = (i["b"] * c) @ i["a"] * scale
    if "merged" in results:
        return results | {"merged": i["weight"] + delta}
    return results | {"y": i["x"] @ (i["weight"] + delta).T + i.get("bias", 0.0)}


@fault("strength", "not divided by the rank", "boundary", operations="delora.*")
def _(problem, run):
    return run(with_inputs(problem, boundary=wide(problem.inputs["boundary"]) * problem.dims["r"]))


@fault("strength", "divided by the root of the rank", "boundary", operations="delora.*")
def _(problem, run):
    return run(with_inputs(problem, boundary=wide(problem.inputs["boundary"]) * np.sqrt(problem.dims["r"])))


@fault("strength", "norms of the columns of a when square", "boundary", operations="delora.*")
def _(problem, run):
    a = wide(problem.inputs["a"])
    square = a.shape[0] == a.shape[1]
    return _with(problem, run, _strengths(problem, la=np.linalg.norm(a, axis=0))) if square else run(problem)


@fault("strength", "only a brought to norm one", "boundary", operations="delora.*")
def _(problem, run):
    return _with(problem, run, _strengths(problem, lb=np.ones(problem.dims["r"])))


@fault("strength", "norms of the whole factors", "boundary", operations="delora.*")
def _(problem, run):
    whole = [np.full(problem.dims["r"], np.linalg.norm(wide(problem.inputs[n]))) for n in ("a", "b")]
    return _with(problem, run, _strengths(problem, *whole))


@fault("strength", "the floor added to the norms", "floor=", operations="delora.*")
def _(problem, run):
    a, b, floor = wide(problem.inputs["a"]), wide(problem.inputs["b"]), problem.attributes["floor"]
    return _with(
        problem, run, _strengths(problem, np.linalg.norm(a, axis=1) + floor, np.linalg.norm(b, axis=0) + floor)
    )


@fault("strength", "the floor doubled", "floor=", operations="delora.*")
def _(problem, run):
    return run(with_attributes(problem, floor=problem.attributes["floor"] * 2))


@fault("strength", "norms of the weight's columns forgotten", "norms", operations="delora.*")
def _(problem, run):
    if "norms" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, norms=np.ones_like(problem.inputs["norms"])))


@fault("strength", "no gradient through the norms", "dboundary", "da", "db", operations="delora.*")
def _(problem, run):
    """c taken for a constant: from the right gradients, what goes along A and B is taken out."""
    results = run(problem)
    if "da" not in results:
        return results
    a, b, floor = wide(problem.inputs["a"]), wide(problem.inputs["b"]), problem.attributes["floor"]
    la, lb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0)
    lost = _lost(problem, results)
    da = np.where((la >= floor) & (la > 0), lost / np.where(la > 0, la, 1) ** 2, 0.0)
    db = np.where((lb >= floor) & (lb > 0), lost / np.where(lb > 0, lb, 1) ** 2, 0.0)
    return results | {"da": wide(results["da"]) + da[:, None] * a, "db": wide(results["db"]) + db * b}


def _lost(problem, results):
    """dc c of each triplet: by Euler, what <da, a> has without the norms, as da = c dq and dc = <a, dq>."""
    i = {n: wide(a) for n, a in problem.inputs.items()}
    scale = i.get("norms", np.ones(i["a"].shape[1]))
    dy = wide(next(iter(problem.cotangents.values())))
    ddelta = dy if "merged" in results else dy.reshape(-1, dy.shape[-1]).T @ i["x"].reshape(-1, i["x"].shape[-1])
    return _strengths(problem) * np.sum(i["a"] * (i["b"].T @ (ddelta * scale)), axis=1)
