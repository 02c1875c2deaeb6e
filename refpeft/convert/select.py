"""Which tensors are quantised: the matrices of linear layers, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from refpeft.convert.source import Tensor
from refpeft.errors import FormatError
from refpeft.numerics.formats import FORMATS

QUANTISE = ("*.weight",)
KEEP = ("*embed*", "*wte*", "*wpe*", "*norm*", "*ln_*", "*lm_head*", "*score*", "*classifier*", "*gate.weight")
"""Tables of tokens and positions, norms, heads, and the routers of mixtures stay as they are."""


def selected(
    tensors: Mapping[str, Tensor], quantise: Sequence[str] = QUANTISE, keep: Sequence[str] = KEEP
) -> frozenset[str]:
    """The floating-point matrices whose name matches a pattern of ``quantise`` and none of ``keep`` (``*`` also matches dots).

    Raises
    ------
    FormatError
        If there are none.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    names = [name for name, t in tensors.items() if len(t.shape) == 2 and t.elements and t.dtype.name in FORMATS]
    chosen = frozenset(name for name in names if matches(name, quantise) and not matches(name, keep))
    if not chosen:
        raise FormatError(
            f"None of the {len(tensors)} tensors is quantised: expected a floating-point matrix whose name matches "
            f"{' or '.join(quantise)}, and not {' or '.join(keep)}."
        )
    return chosen
