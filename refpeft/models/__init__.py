"""Real models, made of operations: their forward and backward run on any backend."""

from refpeft.models.llama import Llama
from refpeft.models.load import load

__all__ = ["Llama", "load"]
