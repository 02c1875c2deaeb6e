"""Laws of LoKr."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, merged_kernel, update_laws, without
from refpeft_conformance.laws.explicit import explicit_update
from refpeft_conformance.strategies import is_exact

update_laws("lokr", zero="w1")
update_laws("lokr_dense", zero="w1")
update_laws("lokr_both", zero="w1_a")
merged_kernel("lokr", zero="w1")
merged_kernel("lokr_core", zero="core")


@law("lokr_core.merge", "a zero core leaves the weight")
def _(subject, problem, observed):
    equal("zero core", subject.run(without(problem, "core"))["merged"], problem.inputs["weight"], observed)


def _kron(i, attributes):
    first = i["w1"] if "w1" in i else i["w1_a"] @ i["w1_b"]
    second = i["w2"] if "w2" in i else i["w2_a"] @ i["w2_b"]
    return attributes["scaling"] * np.kron(first, second)


for _family in ("lokr", "lokr_dense", "lokr_both"):
    explicit_update(_family, "the Kronecker product that NumPy gives", _kron)


@law("lokr_core.merge", "a core that is one at a point gives the kernel of rank one there", regime="exact")
def _(subject, problem, observed):
    """With T = 1 at (0, 0, 0, 0) only, the update at that point of the kernel is s W1 (x) (W2a[0] W2b[0])."""
    if not problem.inputs["core"].size:
        return
    core, weight = np.zeros_like(problem.inputs["core"]), np.zeros_like(problem.inputs["weight"])
    core[0, 0, 0, 0] = 1
    point = problem.replace(inputs=problem.inputs | {"core": core, "weight": weight}, cotangents={})
    if not is_exact(point, subject.precision(problem.dtype)):
        return
    i = {n: a.astype(np.float64) for n, a in problem.inputs.items()}
    first = problem.attributes["scaling"] * np.kron(i["w1"], np.outer(i["w2_a"][0], i["w2_b"][0]))
    merged = subject.run(point)["merged"].astype(np.float64)
    area = core.shape[2] * core.shape[3]
    expected = np.zeros((*first.shape, area))
    expected[..., 0] = first
    equal("one point", merged, expected.reshape(merged.shape), observed)
