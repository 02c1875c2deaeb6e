"""Rotations from skew-symmetric matrices, in torch."""

import torch

from refpeft_torch.precision import wide


def upper_triangles(vectors, size):
    """(..., size (size - 1) / 2) as matrices (..., size, size) that are zero on and below the diagonal."""
    row, column = torch.triu_indices(size, size, 1, device=vectors.device)
    flat = vectors.new_zeros(*vectors.shape[:-1], size * size)
    return flat.index_copy(-1, row * size + column, vectors).unflatten(-1, (size, size))


def rotation(skew, size, variant, terms):
    """(..., size, size) from the strict upper triangles (..., size (size - 1) / 2)."""
    upper = upper_triangles(wide(skew), size)
    return cayley(upper - upper.mT, variant, terms).to(skew.dtype)


def cayley(k, variant, terms=0):
    """R from K."""
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device).expand_as(k)
    if variant == "neumann":
        return _series(k, identity, terms)
    left, right = (identity - k, identity + k) if variant == "paper" else (identity + k, identity - k)
    return torch.linalg.solve(left, right)


def _series(k, identity, terms):
    """I + 2 K + 2 K^2 + ..., the last power once; three terms are four, as in peft."""
    if terms < 3:
        return identity + 2 * k if terms == 2 else identity + 0 * k
    last = max(terms, 4) - 1
    twice = sum(torch.linalg.matrix_power(k, j) for j in range(1, last))
    return identity + 2 * twice + torch.linalg.matrix_power(k, last)


def turn(x, r):
    """x R with R block-diagonal, (m, size, size), or one block for all, (1, size, size)."""
    blocks = x.unflatten(-1, (x.shape[-1] // r.shape[-1], r.shape[-1]))
    return torch.matmul(blocks.unsqueeze(-2), r).squeeze(-2).flatten(-2)
