"""Laws of MiSS."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("miss", zero="block")
update_laws("miss_bat", zero="block")


@law("miss.merge", "the update repeats every r columns and every m rows")
def _(subject, problem, observed):
    """On a zero weight it is D, over and over, bit for bit."""
    zero = np.zeros_like(problem.inputs["weight"])
    delta = subject.run(problem.replace(inputs=problem.inputs | {"weight": zero}, cotangents={}))["merged"]
    r, m = problem.inputs["block"].shape
    equal("columns", delta[:, r:], delta[:, : max(0, delta.shape[1] - r)], observed)
    equal("rows", delta[m:], delta[: delta.shape[0] - m], observed)


def _shared(i, attributes):
    (o, columns), (r, m) = i["weight"].shape, i["block"].shape
    return i["block"][np.ix_(np.arange(columns) % r, np.arange(o) % m)].T


explicit_update("miss", "D[j mod r, k mod m]", _shared)
explicit_update(
    "miss_bat",
    "D beside D",
    lambda i, _: np.tile(np.concatenate(i["block"]), i["weight"].shape[1] // i["block"].shape[1]),
)
