"""Real models, made of operations: their forward and backward run on any backend."""

from refpeft.models.language import LanguageModel
from refpeft.models.load import load, load_encoder
from refpeft.models.text_encoder import TextEncoder

__all__ = ["LanguageModel", "TextEncoder", "load", "load_encoder"]
