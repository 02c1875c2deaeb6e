"""Laws of TinyLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("tinylora", zero="v")
explicit_update(
    "tinylora",
    "the mixture of the matrices B P_m A",
    lambda i, _: sum((v * (i["b"] @ p @ i["a"]) for v, p in zip(i["v"], i["projections"])), np.zeros_like(i["weight"])),
)
