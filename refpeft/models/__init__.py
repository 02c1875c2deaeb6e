"""Real models, made of operations: their forward and backward run on any backend."""

from refpeft.models.language import LanguageModel
from refpeft.models.load import load, load_classifier, load_encoder
from refpeft.models.text_classifier import TextClassifier
from refpeft.models.text_encoder import TextEncoder

__all__ = ["LanguageModel", "TextClassifier", "TextEncoder", "load", "load_classifier", "load_encoder"]
