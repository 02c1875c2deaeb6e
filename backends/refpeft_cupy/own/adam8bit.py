"""Adam and AdamW on moments of 8 bits, by a kernel."""

from __future__ import annotations

import math

from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch
from refpeft_cupy.own import implements
from refpeft_cupy.own._arrays import blocks, contiguous, empty

BLOCK, TURNS = 256, 16
"""As in ``adam8bit_step.cu``: elements under one maximum, and how many such blocks a block of threads takes."""


@implements("adam8bit.step")
def step(p, grad, *state, lr, step, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0, variant="paper"):
    """One pass over parameter, gradient and state, whose new ones are arrays of their own."""
    given = [contiguous(x) for x in (p, grad, *state)]
    results = [empty(x, x.shape) for x in (given[0], *given[2:])]
    n, root = p.shape[0], math.sqrt(1 - beta2**step)
    numbers = (1 - lr * decay, lr / (1 - beta1**step), root, beta1, beta2, eps, variant == "bitsandbytes-cpu")
    launch(kernel("adam8bit_step"), (blocks(n, BLOCK * TURNS),), (BLOCK,), (*given, *results, n, *numbers))
    return tuple(results), None
