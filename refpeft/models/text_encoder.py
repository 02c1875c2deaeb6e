"""An encoder of BERT's kind (Devlin et al. 2018, arXiv:1810.04805), forward and backward as a sequence of operations.

    x = norm(E[ids] + P[positions] + S[segments])
    hidden = blocks(drop(x)), every token seeing all that are no padding

In training there is dropout behind this norm and behind each sublayer; transformers has it on the weights of attention, too.

What is made of the hidden states is the caller's affair: `hidden` gives them, `with_vjp` their gradients too. BERT's pooler is
computed where a classifier is read with it, see `refpeft.models.text_classifier`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from refpeft.errors import ShapeError
from refpeft.models.attention import Shared
from refpeft.models.blocks import blocks
from refpeft.models.dropout import Dropout, dropped
from refpeft.models.parts import at, embedded
from refpeft.models.transformer import Transformer
from refpeft.ops.prompt import extend_mask


class TextEncoder(Transformer):
    """A vector for each token, from all tokens around it."""

    def hidden(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        segments: np.ndarray | None = None,
        tasks: np.ndarray | None = None,
    ):
        """Hidden states (n, s, w) of token ids (n, s), as the backend's array.

        Parameters
        ----------
        ids : (n, s) int64
        mask : (n, s) bool, optional
            False where a token is padding, which none sees; all are tokens where it is not given.
        segments : (n, s) int64, optional
            Of which text each token is; of the first where it is not given.
        tasks : (n,) int64, optional
            Of each row, where a method takes it.
        """
        self._encode(keep=False)
        return self.told(tasks, len(ids))._forward(ids, mask, segments, keep=False)[0]

    def with_vjp(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        segments: np.ndarray | None = None,
        checkpointing: bool = False,
        tasks: np.ndarray | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
        """Hidden states, and a function that is to be called once: from the gradient of a loss to them to those of what is
        trained, by ``SITE.ARRAY``. With ``checkpointing`` only the inputs of blocks are kept between the two. ``dropout`` is of
        what enters those adapters that have it; where it is given, there is the encoder's own too.
        """
        encoding = self._encode(keep=True)
        model = copy.copy(self.told(tasks, len(ids)))
        model.dropout = dropout
        hidden, hidden_vjp = model._forward(ids, mask, segments, keep=True, checkpointing=checkpointing)

        def vjp(dhidden) -> dict[str, Any]:
            gradients: dict[str, Any] = {}
            hidden_vjp(dhidden, gradients)
            return self._encode_vjp(encoding, gradients)

        return hidden, vjp

    def through(self, ids: np.ndarray) -> None:
        self.hidden(ids)

    def _forward(self, ids, mask, segments, *, keep: bool, checkpointing: bool = False):
        """Hidden states of the tokens, those of a prompt left out, and their vjp."""
        ids = self.checked(ids)
        x, embedded_vjp = embedded(self, ids, keep)
        virtual = x.shape[1] - ids.shape[1]
        x = self.positioned(x, self.prefixed())
        x = x + self.looked_up("segments", self._segments(ids, segments, virtual))
        x, norm_vjp = at(self, "embedding.norm", x, keep)
        x, dropped_vjp = dropped(self, "embedding.dropout", x, self.hidden_dropout)
        x, blocks_vjp = blocks(self, x, Shared(masks=self._seen(ids, mask, virtual)), keep, checkpointing)

        def vjp(dhidden, gradients):
            if virtual:
                none = self.asarray(np.zeros((len(ids), virtual, self.shape.width)))
                dhidden = self.joined([none, dhidden], axis=1)
            below = embedded_vjp is not None
            dx = blocks_vjp(dhidden, gradients, further=below or self.trains("embedding.norm"))
            dx = None if dx is None else norm_vjp(dropped_vjp(dx), gradients, further=below)
            if embedded_vjp is not None:
                embedded_vjp(dx, gradients)

        return x[:, virtual:], vjp

    def _segments(self, ids: np.ndarray, segments, virtual: int) -> np.ndarray:
        """The segment of every token, (n, s), or of all, (1,); a prompt's tokens are of the first."""
        if segments is None:
            return np.zeros(1, np.int64)
        segments = self.checked(segments, "segments")
        self._require_shape("segments", segments, ids)
        return np.pad(segments, ((0, 0), (virtual, 0)))

    def _seen(self, ids: np.ndarray, mask, virtual: int) -> dict[str, Any]:
        """In every block every token sees what is no padding, (n, s, s); nothing where all do."""
        if mask is None:
            return {}
        mask = np.asarray(mask, bool)
        self._require_shape("mask", mask, ids)
        mask = extend_mask(mask, virtual)
        seen = self.asarray(np.broadcast_to(mask[:, None], (len(mask), mask.shape[1], mask.shape[1])))
        return {f"layers.{i}": seen for i in range(self.shape.layers)}

    def _require_shape(self, name: str, array: np.ndarray, ids: np.ndarray) -> None:
        if array.shape != ids.shape:
            raise ShapeError(f"{name} must have the shape {ids.shape} of the token ids, but {array.shape} came.")
