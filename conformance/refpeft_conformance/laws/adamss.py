"""Laws of AdaMSS."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("adamss", zero="outer")
explicit_update(
    "adamss",
    "row by row in the subspace of the row's group",
    lambda i, _: np.array([row @ i["inner"][g] @ i["basis"] for row, g in zip(i["outer"], i["group"])]).reshape(
        i["weight"].shape
    ),
)
