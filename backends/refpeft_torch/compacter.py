"""Compacter's layers in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements


@implements("compacter.phm")
def phm(x, rule, weights, bias=None):
    """The matrix as one contraction over its Kronecker products."""
    matrix = torch.einsum("mac,mbd->abcd", rule, weights).flatten(2, 3).flatten(0, 1)
    return F.linear(x, matrix.T, bias)


@implements("compacter.linear")
def linear(x, rule, left, right, bias=None):
    """The same with factored weights."""
    return phm(x, rule, torch.bmm(left, right), bias)
