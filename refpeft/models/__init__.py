"""Real models, made of operations: their forward and backward run on any backend."""

from refpeft.models.language import LanguageModel
from refpeft.models.load import load

__all__ = ["LanguageModel", "load"]
