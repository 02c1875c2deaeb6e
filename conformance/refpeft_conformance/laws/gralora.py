"""Laws of GraLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("gralora", zero=("block_b", "general_b"))


def _blocks(i, attributes):
    a, b = i["block_a"], i["block_b"]
    k, q = len(a), a.shape[2] // len(a)
    blocks = [[(a[n][:, m * q : (m + 1) * q] @ b[m][n * q : (n + 1) * q]).T for n in range(k)] for m in range(k)]
    return attributes["scaling"] * (np.block(blocks) + i["general_b"] @ i["general_a"])


explicit_update("gralora", "block by block a product over a share of the rank", _blocks)
