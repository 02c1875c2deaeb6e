"""Honest: one of the ways in which a careful implementation may compute, each primitive really rounded.

The interpretation runs a source in float32 (float64 where the problem is fp64), one NumPy operation per rounding. What the
budget leaves open is chosen by an order of summation and a style:

==========  =================================================================================================
``stored``  every intermediate is rounded to the storage dtype; a chain of additions is taken in the order
``fused``   intermediates stay wide; the contractions of a chain of additions share one accumulator, which adds
            all their terms in the order, by FMA where a wider format holds the product (not in fp64)
``late``    as fused, but a number multiplies the contraction, not its operand: a kernel's epilogue
==========  =================================================================================================

So any operation of the catalogue has honest implementations that differ, and none may be outside a budget.
"""

from refpeft_conformance.honest import rules  # noqa: F401  (they register themselves)
from refpeft_conformance.honest.array import STYLES, Arithmetic, Honest
from refpeft_conformance.honest.backend import HonestBackend, honest_backends
from refpeft_conformance.honest.summation import ORDERS

__all__ = ["ORDERS", "STYLES", "Arithmetic", "Honest", "HonestBackend", "honest_backends"]
