"""A language model, forward and backward as a sequence of operations.

    x = E[ids]
    x = blocks(x)
    logits = H norm(x)

It is of Llama's kind (Touvron et al. 2023, arXiv:2302.13971), or of GPT-2's, where x has a table's positions added: what blocks
are made of is the shape's affair, see `refpeft.memory.decoder.Decoder`.

Every step is an operation of the catalogue, called through a backend, so that a model runs on any that is certified. Methods
stand at *sites*, see `refpeft.models.places`: at matrices and norms, in attention, behind sublayers, in front of the
tokens.

A prefix's keys are not turned, and the input's tokens are counted from behind it, as transformers has it with a cache; a prompt's
tokens are tokens, counted from 0. Neither is predicted, and the first of the input is not predicted from them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from refpeft.errors import CapabilityError
from refpeft.memory.decoder import Decoder
from refpeft.methods.shadow import BACKBONE
from refpeft.methods.xlora import GATES
from refpeft.models import mixture, shards
from refpeft.models.attention import Shared, cached
from refpeft.models.blocks import blocks
from refpeft.models.dropout import Dropout
from refpeft.models.four_bit import Base
from refpeft.models.parts import Vjp, at, embedded
from refpeft.models.places import Place, place
from refpeft.models.shadow import Beginning, auxiliary, shadowed
from refpeft.models.transformer import Transformer
from refpeft.ops import prompt


class LanguageModel(Transformer):
    """A decoder: what follows each token, from those before it.

    Attributes
    ----------
    beginning : refpeft.models.shadow.Beginning or None
        Of a shadow, in the pass that is under way.
    """

    beginning: Beginning | None = None

    def logits(self, ids: np.ndarray, cache: list | None = None, last: bool = False, tasks: np.ndarray | None = None):
        """Logits (n, s, v) of token ids (n, s), as the backend's array.

        Parameters
        ----------
        ids : (n, s) int64
        cache : list, optional
            Keys and values of the tokens before, empty at first; those of ``ids`` are put behind them. Of X-LoRA's first pass
            and of a shadow's model too.
        last : bool
            Whether only those behind the last token are wanted, (n, 1, v).
        tasks : (n,) int64, optional
            Of each text, where a method takes it.
        """
        ids = self.checked(ids)
        self._encode(keep=False)
        bare = None if cache is None else cache[self.shape.layers :]
        model, _ = mixture.gated(self.told(tasks, len(ids)), ids, keep=False, cache=bare)
        x, _ = model._read(ids, keep=False, cache=cache, last=last)
        if cache is not None and bare is not None and GATES in self.sites:
            cache[self.shape.layers :] = bare
        return at(model, "head", x, keep=False)[0][:, -ids.shape[1] :]

    def loss(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        checkpointing: bool = False,
        dropout: Dropout | None = None,
        tasks: np.ndarray | None = None,
    ):
        """The mean cross-entropy of each next token, with what a shadow adds to it, and its gradients.

        Parameters
        ----------
        ids : (n, s) int64
        mask : (n, s - 1) bool, optional
            Which of the predicted tokens count.
        checkpointing : bool
            Whether only the inputs of blocks are kept, and each block computed again on the way back: equal bits.
        dropout : Dropout, optional
            Of what enters those adapters that have it.
        tasks : (n,) int64, optional
            Of each text, where a method takes it.

        Returns
        -------
        loss : float
        gradients : dict of str to array
            By ``SITE.ARRAY``, of what is trained.
        """
        ids = self.checked(ids)
        encoding, told, weight = self._encode(keep=True), self.told(tasks, len(ids)), auxiliary(self)

        def task(first, ids, mask, share):
            gradients: dict[str, Any] = {}
            model = copy.copy(told.told(_of(told.tasks, first, ids), len(ids)))
            model.dropout = None if dropout is None else replace(dropout, first=first)
            model, gated_vjp = mixture.gated(model, ids[:, :-1], keep=True)
            model.beginning = Beginning() if weight else None
            x, x_vjp = model._read(ids[:, :-1], keep=True, checkpointing=checkpointing)
            loss, loss_vjp = model._loss(x, ids[:, 1:], mask, keep=True)
            total = float(self.host(loss))
            dx = loss_vjp(self.asarray(np.array(share)), gradients)
            if model.beginning is not None:
                own, own_vjp = model._loss(model.beginning.state, ids[:, 1:], mask, keep=True)
                total += weight * float(self.host(own))
                model.beginning.gradient = own_vjp(self.asarray(np.array(share * weight)), gradients)
            x_vjp(dx, gradients)
            gated_vjp(gradients)
            return share * total, gradients

        losses, gradients = zip(
            *shards.each(self.backend, shards.breadth(self.shape), task, ids, mask, self.operations)
        )
        return sum(losses), self._encode_vjp(encoding, shards.summed(gradients))

    def score(self, ids: np.ndarray, mask: np.ndarray | None = None, tasks: np.ndarray | None = None) -> float:
        """The mean cross-entropy alone; as for `loss`, without what its gradients would take and what a shadow adds."""
        ids = self.checked(ids)
        self._encode(keep=False)
        told = self.told(tasks, len(ids))

        def task(first, ids, mask, share):
            model = told.told(_of(told.tasks, first, ids), len(ids))
            model, _ = mixture.gated(model, ids[:, :-1], keep=False)
            x, _ = model._read(ids[:, :-1], keep=False)
            return share * float(self.host(model._loss(x, ids[:, 1:], mask, keep=False)[0]))

        return sum(shards.each(self.backend, shards.breadth(self.shape), task, ids, mask, self.operations))

    def through(self, ids: np.ndarray) -> None:
        self.logits(ids)

    def _places(self) -> dict[str, Place]:
        """Those of every transformer, and the classifier of X-LoRA's gates."""
        hidden = (1, 1, self.shape.width)
        return super()._places() | {GATES: Place("gates", self.tables["embedding"], {"hidden": hidden})}

    def _loss(self, x, target, mask, *, keep: bool) -> tuple[Any, Vjp]:
        """The loss of what the head reads, and its vjp: one operation where the backend has it whole and the head is plain."""
        virtual = x.shape[1] - target.shape[1]
        if virtual:
            mask = prompt.extend_mask(np.ones(target.shape, bool) if mask is None else np.asarray(mask), virtual)
            mask[:, :virtual] = False
            target = prompt.extend_labels(target, virtual, ignore=0)
        aim = {"target": self.asarray(target)} | ({} if mask is None else {"mask": self.asarray(np.asarray(mask))})
        further = self._reads_trained()
        if self._plain_head() and "nn.lm_loss" in self.backend.operations():
            head = self.sites["head"].arrays
            loss, call = self.run.forward("nn.lm_loss", {"x": x, **head, **aim}, keep)
            return loss, lambda one, gradients: self.run.vjp(call, one, ["x"] if further else []).get("x")
        logits, head_vjp = at(self, "head", x, keep)
        loss, call = self.run.forward("nn.cross_entropy", {"logits": logits, **aim}, keep)

        def vjp(one, gradients):
            return head_vjp(self.run.vjp(call, one, ["logits"])["logits"], gradients, further)

        return loss, vjp

    def _plain_head(self) -> bool:
        """Whether the head is a matrix alone, not in 4 bits, of which nothing is trained, and that nobody watches."""
        head = self.sites["head"]
        alone = head.operation == "nn.linear" and head.arrays.keys() == {"weight"} and not head.trained
        return alone and not isinstance(head.arrays["weight"], Base) and not self.watch

    def _reads_trained(self) -> bool:
        """Whether anything that is trained lies below the head."""
        return "prompt" in self.sites or any(self.trains(part) for part in ("embedding", "layers.", "norm"))

    def _read(self, ids, *, keep: bool, cache: list | None = None, checkpointing: bool = False, last: bool = False):
        """What the head reads, and its vjp."""
        before = cached(cache)
        x, embedded_vjp = embedded(self, ids, keep, prompted=not before)
        start = before + self.prefixed()
        if self.shape.positions:
            x = self.positioned(x, start)
        turns = None if self.shape.positions else self.turns(start, x.shape[1])
        shared = Shared(turns, cache, self._windowed(len(ids), x.shape[1], before))
        x, blocks_vjp = (shadowed if f"{BACKBONE}.norm" in self.sites else blocks)(self, x, shared, keep, checkpointing)
        x = x[:, -1:] if last else x
        x, norm_vjp = at(self, "norm", x, keep)

        def vjp(dx, gradients):
            below = embedded_vjp is not None
            dx = None if dx is None else norm_vjp(dx, gradients, further=below or self.trains("layers."))
            dx = None if dx is None else blocks_vjp(dx, gradients, further=below)
            if embedded_vjp is not None:
                embedded_vjp(dx, gradients)

        return x, vjp

    def _windowed(self, n: int, count: int, before: int) -> dict[str, Any]:
        """Where a token sees the last tokens only, (n, s, t), by block; nothing where these are all that there are.

        Raises
        ------
        CapabilityError
            If a prefix would slide out of sight, as transformers has it: here it is always seen.
        """
        stop = before + count
        sliding = {window for window in self.windows if 0 < window < stop + self.prefixed()}
        if sliding and self.prefixed():
            raise CapabilityError(f"a prefix slides out of sight of {min(sliding)} tokens, which is not computed.")
        query, key = np.arange(before, stop)[:, None], np.arange(stop)
        seen = {w: self.asarray(np.broadcast_to(key > query - w, (n, count, stop))) for w in sliding}
        return {f"layers.{i}": seen[w] for i, w in enumerate(self.windows) if w in seen}


def _of(tasks: np.ndarray | None, first: int, ids: np.ndarray) -> np.ndarray | None:
    """Those of a shard's texts."""
    return None if tasks is None else tasks[first : first + len(ids)]


def pattern(shape: Decoder, targets: str) -> str:
    """The sites in every layer of matrices that ``targets`` names, see `Decoder.select`."""
    return ",".join(f"layers.*.{place(m.site)}" for m in shape.select(targets))
