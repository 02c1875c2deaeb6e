"""Laws of RandLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("randlora", zero="lambdas")


def _diagonals(i, attributes):
    """The sum over the bases, with diagonal matrices."""
    a, b, lambdas, gammas = (i[n] for n in ("base_a", "base_b", "lambdas", "gammas"))
    if attributes["variant"] == "paper":
        terms = [b[:, j] @ np.diag(lambdas[:, j]) @ a @ np.diag(gammas[j]) for j in range(len(gammas))]
        total = sum(terms)
    else:
        columns, rank = b.reshape(len(b), -1), len(a)
        rows = [lambdas[t, j] * a[t] * gammas[j] for t in range(rank) for j in range(len(gammas))]
        total = sum(np.outer(columns[:, f], row) for f, row in enumerate(rows))
    o, columns_of = i["weight"].shape
    return attributes["scaling"] * (total.T if o < columns_of else total)


explicit_update("randlora", "the sum over the bases between diagonal matrices", _diagonals)
