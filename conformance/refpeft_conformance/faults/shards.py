"""Mistakes with updates that are cut into blocks, or repeat one."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


def moved(problem, run, zeroed: tuple[str, ...], delta: np.ndarray):
    """The results with another update: the honest ones without any, and ``delta`` added in float64."""
    without = run(with_inputs(problem, **{n: np.zeros_like(problem.inputs[n]) for n in zeroed}))
    if "merged" in without:
        return run(problem) | {"merged": wide(without["merged"]) + delta}
    return run(problem) | {"y": wide(without["y"]) + wide(problem.inputs["x"]) @ delta.T}


@fault("shards", "shards contiguous instead of strided", "block", "[m]", operations="miss.*")
def _(problem, run):
    """Column j takes row j // (i / r) of D instead of j mod r."""
    block, (o, i) = wide(problem.inputs["block"]), problem.inputs["weight"].shape
    row = np.arange(i) // max(1, -(-i // len(block)))
    return moved(problem, run, ("block",), np.tile(block[row].T, (o // block.shape[1], 1)))


@fault("shards", "the short shard at the end dropped", "block", "[m]", operations="miss.*")
def _(problem, run):
    """No padding where r does not divide i."""
    block, (o, i) = wide(problem.inputs["block"]), problem.inputs["weight"].shape
    delta = np.tile(block[np.arange(i) % len(block)].T, (o // block.shape[1], 1))
    delta[:, i // len(block) * len(block) :] = 0
    return moved(problem, run, ("block",), delta)


@fault("shards", "only the first tile reaches dblock", "dblock", "[m]", operations="miss.*")
def _(problem, run):
    if not problem.cotangents:
        return run(problem)
    ((name, cotangent),) = problem.cotangents.items()
    cut = cotangent.copy()
    m = problem.inputs["block"].shape[1]
    if name == "dy":
        cut[..., m:] = 0
    else:
        cut[m:] = 0
    return only("dblock", run(problem.replace(cotangents={name: cut})), run(problem))


@fault("shards", "the block added but not multiplied", "block", "[g]", operations="miss_bat.*")
def _(problem, run):
    """delta[g, k] = D_g without W[g, k] D_g."""
    block = wide(problem.inputs["block"])
    return moved(problem, run, ("block",), np.tile(np.concatenate(block), problem.dims["i"] // block.shape[1]))


@fault("shards", "blocks multiplied from the left", "block", "[g]", operations="miss_bat.*")
def _(problem, run):
    """D_g W[g, k] in place of W[g, k] D_g."""
    block, weight = wide(problem.inputs["block"]), wide(problem.inputs["weight"])
    g, r = block.shape[:2]
    blocks = weight.reshape(g, r, -1, r).transpose(2, 0, 1, 3)
    return moved(problem, run, ("block",), (block @ blocks + block).transpose(1, 2, 0, 3).reshape(weight.shape))


@fault("shards", "one block for all rows of blocks", "block", "[g]", operations="miss_bat.*")
def _(problem, run):
    block = problem.inputs["block"]
    return run(with_inputs(problem, block=np.broadcast_to(block[:1], block.shape).copy()))


@fault("shards", "shares of the rank not exchanged between blocks", "block_a", operations="gralora.*")
def _(problem, run):
    """Block (m, n) takes share n of A_n and share m of B_m."""
    a, b = wide(problem.inputs["block_a"]), wide(problem.inputs["block_b"])
    k, q = len(a), a.shape[2] // len(a)
    blocks = [[(a[n][:, n * q : (n + 1) * q] @ b[m][m * q : (m + 1) * q]).T for n in range(k)] for m in range(k)]
    general = wide(problem.inputs["general_b"]) @ wide(problem.inputs["general_a"])
    return moved(problem, run, ("block_b", "general_b"), problem.attributes["scaling"] * (np.block(blocks) + general))


@fault("shards", "block index transposed", "block_a", operations="gralora.*")
def _(problem, run):
    """The update's blocks (m, n) at (n, m), where blocks are square."""
    a, b = wide(problem.inputs["block_a"]), wide(problem.inputs["block_b"])
    if a.shape[1] != b.shape[2]:
        return run(problem)
    k, q = len(a), a.shape[2] // len(a)
    blocks = [[(a[m][:, n * q : (n + 1) * q] @ b[n][m * q : (m + 1) * q]).T for n in range(k)] for m in range(k)]
    general = wide(problem.inputs["general_b"]) @ wide(problem.inputs["general_a"])
    return moved(problem, run, ("block_b", "general_b"), problem.attributes["scaling"] * (np.block(blocks) + general))


@fault("shards", "hybrid part forgotten", "general_b", operations="gralora.*")
def _(problem, run):
    return run(with_inputs(problem, general_b=np.zeros_like(problem.inputs["general_b"])))


@fault("shards", "alpha over r alone beside a hybrid part", "general_b", "scaling=", operations="gralora.*")
def _(problem, run):
    """s = alpha / r where it is alpha / (r + h)."""
    r, h = problem.inputs["block_a"].shape[2], problem.inputs["general_a"].shape[0]
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] * (r + h) / max(1, r)))
