"""An encoder of BERT's kind with a classifier above it, as transformers' BertForSequenceClassification.

    logits = C drop(tanh(P h + p)) + c        h the hidden state of the first token

P is the pooler, and there is dropout in training. A row's loss is the cross-entropy of its label; that of a batch is the mean.
Methods train what they bring, and of the head is trained what the caller says, whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refpeft.errors import AttributeValueError, DomainError, ShapeError
from refpeft.models import shards
from refpeft.models.dropout import Dropout, dropped
from refpeft.models.parts import Vjp, at
from refpeft.models.text_encoder import TextEncoder

HEAD = ("pooler", "classifier")
_DEVIATION = 0.02
"""Of matrices at the start, as transformers draws them."""


class TextClassifier(TextEncoder):
    """A label for each row.

    Parameters
    ----------
    shape, weights, **stated
        As of `refpeft.models.transformer.Transformer`; among the weights ``pooler`` (w, w) and ``classifier`` (k, w), and their
        biases.
    train : sequence of str
        What of the head is trained: of ``pooler`` and ``classifier``.
    classifier_dropout : float
        In training, of what the classifier reads.
    """

    def __init__(
        self,
        shape,
        weights: Mapping[str, Any],
        *,
        train: Sequence[str] = HEAD,
        classifier_dropout: float = 0.0,
        **stated,
    ):
        super().__init__(shape, weights, **stated)
        self.classifier_dropout = classifier_dropout
        if strange := [name for name in train if name not in HEAD]:
            raise AttributeValueError(f"train must be of {', '.join(HEAD)}, but {strange[0]!r} came.")
        for name in train:
            self.sites[name] = replace(self.sites[name], trained=("weight", "bias"))

    @property
    def labels(self) -> int:
        """How many there are."""
        return self.places["classifier"].weight.shape[0]

    @property
    def head(self) -> dict[str, dict[str, np.ndarray]]:
        """What of the head is trained, as host arrays by site."""
        sites = [name for name in HEAD if {"weight", "bias"} <= set(self.sites[name].trained)]
        return {site: {n: self.host(self.sites[site].arrays[n]) for n in ("weight", "bias")} for site in sites}

    def set_head(self, head: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Put arrays in the place of those that are there.

        Raises
        ------
        ShapeError
            If they are not as large.
        """
        for site, arrays in head.items():
            layer = self.sites[site]
            came, wanted = ({n: tuple(its[n].shape) for n in ("weight", "bias")} for its in (arrays, layer.arrays))
            if came != wanted:
                raise ShapeError(f"{site} has the arrays {wanted}, but {came} came.")
            given = {name: self.asarray(array) for name, array in arrays.items()}
            self.sites[site] = replace(layer, arrays={**layer.arrays, **given})

    def logits(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        segments: np.ndarray | None = None,
        tasks: np.ndarray | None = None,
    ):
        """Logits (n, k) of token ids (n, s), as the backend's array; arguments as of `hidden`."""
        self._encode(keep=False)
        model = self.told(tasks, len(ids))
        return model._classified(model._forward(ids, mask, segments, keep=False)[0], keep=False)[0]

    def loss(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None = None,
        segments: np.ndarray | None = None,
        checkpointing: bool = False,
        dropout: Dropout | None = None,
        tasks: np.ndarray | None = None,
    ) -> tuple[float, dict[str, Any]]:
        """The mean cross-entropy of labels (n,) int64, and its gradients by ``SITE.ARRAY``, of what is trained.

        ``dropout`` is of what enters those adapters that have it; where it is given, there is the model's own too, which
        transformers has in training, but for that of attention.

        Raises
        ------
        ShapeError, DomainError
            If the labels are none.
        """
        ids = self.checked(ids)
        labels, seen = self._labels(labels, len(ids)), None if mask is None else np.asarray(mask, bool)
        for name, its in (("mask", seen), ("segments", segments)):
            if its is not None:
                self._require_shape(name, np.asarray(its), ids)
        encoding, told = self._encode(keep=True), self.told(tasks, len(ids))
        below = any(layer.trained for site, layer in self.sites.items() if site not in HEAD)

        def task(first, part, *_):
            def of(array):
                return None if array is None else np.asarray(array)[first : first + len(part)]

            gradients: dict[str, Any] = {}
            share = len(part) / max(len(ids), 1)
            model = copy.copy(told.told(of(told.tasks), len(part)))
            model.dropout = None if dropout is None else replace(dropout, first=first)
            hidden, hidden_vjp = model._forward(part, of(seen), of(segments), keep=True, checkpointing=checkpointing)
            logits, classified_vjp = model._classified(hidden, keep=True)
            target = self.asarray(of(labels))
            loss, call = self.run.forward("nn.cross_entropy", {"logits": logits, "target": target}, True)
            dlogits = self.run.vjp(call, self.asarray(np.array(share)), ["logits"])["logits"]
            dhidden = classified_vjp(dlogits, gradients, below)
            if below:
                hidden_vjp(dhidden, gradients)
            return share * float(self.host(loss)), gradients

        losses, gradients = zip(*shards.each(self.backend, self.shape.width, task, ids, None, self.operations))
        return sum(losses), self._encode_vjp(encoding, shards.summed(gradients))

    def through(self, ids: np.ndarray) -> None:
        self.logits(ids)

    def _classified(self, hidden, keep: bool) -> tuple[Any, Vjp]:
        """Logits of hidden states (n, s, w), of which the first token's are read."""
        n, s, w = hidden.shape
        x, pooler_vjp = at(self, "pooler", hidden[:, 0], keep)
        pooled, call = self.run.forward("nn.tanh", {"x": x}, keep)
        pooled, dropped_vjp = dropped(self, "pooler.dropout", pooled, self.classifier_dropout)
        logits, classifier_vjp = at(self, "classifier", pooled, keep)

        def vjp(dlogits, gradients, further=True):
            dpooled = classifier_vjp(dlogits, gradients, further or self.trains("pooler"))
            if dpooled is None:
                return None
            dfirst = pooler_vjp(self.run.vjp(call, dropped_vjp(dpooled), ["x"])["x"], gradients, further)
            return self.joined([dfirst[:, None], np.zeros((n, s - 1, w))], axis=1) if further else None

        return logits, vjp

    def _labels(self, labels, count: int) -> np.ndarray:
        labels = np.asarray(labels)
        if labels.shape != (count,) or labels.dtype.kind != "i":
            raise ShapeError(
                f"labels are integers of shape ({count},), but {labels.dtype} of shape {labels.shape} came."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < self.labels:
            raise DomainError(f"labels lie from 0 to {self.labels - 1}, but {labels.min()} to {labels.max()} came.")
        return labels.astype(np.int64)


def drawn(random: np.random.Generator, o: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a layer of the head at its start."""
    return random.normal(0, _DEVIATION, (o, i)), np.zeros(o)
