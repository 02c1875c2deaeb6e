"""What a model is trained to say, of tokens or of texts: the rows of a file for it, the model for it, and how well it does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refpeft.convert.quantise import Settings
from refpeft.errors import AttributeValueError, FormatError
from refpeft.formats.names import HEAD
from refpeft.models import LanguageModel, TextClassifier, load, load_classifier
from refpeft.models.head import head_of
from refpeft.training import classification, evaluation, text
from refpeft.training.classification import Labelled


@dataclass(frozen=True)
class Language:
    """To predict each token of a text from those before it."""

    drawn: ClassVar[bool] = False
    """Whether a part of the model may be drawn by the seed."""

    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {}

    def rows(self, data: str, tokenizer, sequence: int) -> np.ndarray:
        """All of a file, in rows of so many tokens and the one behind them."""
        return text.rows(data, tokenizer, sequence + 1)

    def parted(self, data: str, tokenizer, sequence: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows that are held out."""
        return text.parted(data, tokenizer, sequence + 1, share)

    def model(self, path: str, seed: int, *, backend: str, quantise: Settings | None) -> LanguageModel:
        """A decoder to which a method can be attached, whatever the seed."""
        return load(path, backend=backend, quantise=quantise)

    def scores(self, model: LanguageModel, held: np.ndarray, batch: int) -> dict[str, float]:
        """How well a model does it."""
        return {"loss": evaluation.mean_loss(model, held, batch)}

    def base(self, path: str, trained: np.ndarray, held: np.ndarray, batch: int, **how) -> tuple[str, dict[str, float]]:
        """What trained models are set beside, and its scores."""
        return "untrained", self.scores(self.model(path, 0, **how), held, batch)


@dataclass(frozen=True)
class Classification:
    """To say the label of a text.

    Attributes
    ----------
    labels : tuple of str
        Their names, in the order of the classifier's outputs.
    head : tuple of str
        What of the head is trained: of ``pooler`` and ``classifier``.
    dropout : float or None
        The rate within the encoder, and in front of the classifier; None for those of the model's configuration.
    """

    labels: tuple[str, ...]
    head: tuple[str, ...]
    dropout: float | None = None

    drawn: ClassVar[bool] = True

    def __post_init__(self):
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise AttributeValueError(f"the hidden dropout must be from 0 and below 1, but {self.dropout} came.")

    @classmethod
    def of(
        cls, path: str, data: str, labels: Sequence[str] = (), head: Sequence[str] = (), dropout: float | None = None
    ) -> Classification:
        """That of a model and a file, where some of it is not said: the model's labels, or else the data's; the classifier is
        trained, and what the model has not.
        """
        there = head_of(path)
        names = tuple(labels) or there.labels or classification.names(data, classification.examples(data))
        needed = [part for part in HEAD if part == "classifier" or part not in there.parts]
        return cls(names, tuple(head) or tuple(needed), dropout)

    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        own = {} if self.dropout is None else {"hidden_dropout": self.dropout}
        return {"task": "classification", "labels": list(self.labels), "head": list(self.head)} | own

    def rows(self, data: str, tokenizer, sequence: int) -> Labelled:
        """All texts of a file, cut to so many tokens."""
        return classification.labelled(data, classification.examples(data), self.labels, tokenizer, sequence)

    def parted(self, data: str, tokenizer, sequence: int, share: float) -> tuple[Labelled, Labelled]:
        """Texts to train on, and about a share of them, drawn once and for all, which are held out; in the order of the file.

        Raises
        ------
        FormatError
            If none is left to train on.
        """
        rows = self.rows(data, tokenizer, sequence)
        chosen = np.random.default_rng(0).permutation(len(rows))
        count = math.ceil(share * len(rows))
        if count == len(rows):
            raise FormatError(f"{data} has {count} texts, all of them held out, expected one at least to train on.")
        return rows[sorted(chosen[count:])], rows[sorted(chosen[:count])]

    def model(self, path: str, seed: int, *, backend: str, quantise: Settings | None) -> TextClassifier:
        """A classifier to which a method can be attached; what the folder has not of its head is drawn by the seed.

        Raises
        ------
        AttributeValueError
            If that is not trained.
        """
        random = np.random.default_rng([seed, 1])
        classifier = load_classifier(
            path, labels=len(self.labels), train=self.head, random=random, backend=backend, quantise=quantise
        )
        if self.dropout is not None:
            classifier.hidden_dropout = classifier.classifier_dropout = self.dropout
        there = head_of(path).parts
        if untrained := [part for part in HEAD if part not in there and part not in self.head]:
            raise AttributeValueError(
                f"{path} has no {untrained[0]}, so that --head must name it, but {','.join(self.head)} came."
            )
        return classifier

    def scores(self, model: TextClassifier, held: Labelled, batch: int) -> dict[str, float]:
        """How well a model does it."""
        found = evaluation.classified(model, held, batch)
        assert found.loss is not None and found.accuracy is not None
        return {"loss": found.loss, "accuracy": found.accuracy}

    def base(self, path: str, trained: Labelled, held: Labelled, batch: int, **how) -> tuple[str, dict[str, float]]:
        """What trained models are set beside, and its scores: the model as it is, where it has a classifier.

        One that is drawn says nothing; there it is who knows of each label how many of the texts trained on have it, and no more.
        """
        if head_of(path).labels:
            return "untrained", self.scores(self.model(path, 0, **how), held, batch)
        assert trained.labels is not None and held.labels is not None
        shares = np.bincount(trained.labels, minlength=len(self.labels)) / len(trained)
        loss = -float(np.mean([math.log(share) if share else -math.inf for share in shares[held.labels]]))
        return "commonest label", {"loss": loss, "accuracy": float(np.mean(held.labels == shares.argmax()))}


Task = Language | Classification
