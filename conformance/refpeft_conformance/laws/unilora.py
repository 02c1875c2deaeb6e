"""Laws of Uni-LoRA."""

from __future__ import annotations

from refpeft_conformance.laws import update_laws
from refpeft_conformance.laws.explicit import explicit_update

update_laws("unilora", zero="theta")
explicit_update(
    "unilora",
    "the product of two matrices that are read off theta",
    lambda i, _: (i["scale_b"] * i["theta"][i["index_b"]]) @ (i["scale_a"] * i["theta"][i["index_a"]]),
)
