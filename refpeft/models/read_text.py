"""Starts from a text: a prompt begins as the text's embeddings, a prefix as the keys and values that the model has of it.

A model with such a prefix is the model that has read the text: what follows has the logits that it has behind the text. One that
is reparametrised has the last layer of its perceptron solved for it. Li and Liang (2021, arXiv:2101.00190) start from activations
of real words, and find that better than at random where there is little to train on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from refpeft.errors import CapabilityError
from refpeft.methods import Arrays, Method
from refpeft.ops import prefix, prompt

if TYPE_CHECKING:
    from refpeft.models.language import LanguageModel


def started(model: LanguageModel, sites: Sequence[str], method: Method, drawn: Arrays, text: Sequence[int]) -> Arrays:
    """A method's arrays as a text has them, in place of those that were drawn.

    Parameters
    ----------
    model : LanguageModel
        As it is, with what stands in it.
    sites : sequence of str
    method : Method
    drawn : mapping of str to mapping of str to array
        By site, or under ``encoder``.
    text : sequence of int
        Token ids, repeated until they fill the virtual tokens, and cut there.

    Raises
    ------
    CapabilityError
        If it starts from no text.
    """
    require_startable(method)
    return _KNOWN[method.operation](model, sites, method, drawn, text)


def require_startable(method: Method) -> None:
    """Refuse a method that starts from no text.

    Raises
    ------
    CapabilityError
    """
    if method.operation not in _KNOWN:
        raise CapabilityError(f"{type(method).__name__} starts from no text: prompts and prefixes do.")


def _prompt(model, sites, method, drawn, text) -> Arrays:
    """The text's rows of the table."""
    return {site: {"prompt": prompt.from_text(model.weight(site), text, method.tokens)} for site in sites}


def _context(model, sites, method, drawn, text) -> Arrays:
    """The same, frozen, and what they are moved by."""
    rows = _prompt(model, sites, method, drawn, text)
    return {site: {"tokens": rows[site]["prompt"], "delta": drawn[site]["delta"]} for site in sites}


def _prefix(model, sites, method, drawn, text) -> Arrays:
    """The text's keys and values in each layer."""
    return keys_and_values(model, sites, prompt.filled(text, method.tokens))


def _perceptron(model, sites, method, drawn, text) -> Arrays:
    """The perceptron, its last layer such that it gives the text's keys and values."""
    each = keys_and_values(model, sites, prompt.filled(text, method.tokens)).values()
    flat = prefix.together(*(np.stack([its[name] for its in each]) for name in ("prefix_k", "prefix_v")))
    return {"encoder": prefix.fitted(drawn["encoder"], flat)}


def keys_and_values(model: LanguageModel, sites: Sequence[str], text: np.ndarray) -> Arrays:
    """What attention has of a text at its sites: ``prefix_k``, turned by positions, and ``prefix_v``, (g, s, d) both.

    Whatever prompt or prefix the model has is left out.

    Raises
    ------
    CapabilityError
        If the model is an encoder, whose tokens look at those behind them.
    """
    if not model.shape.causal:
        raise CapabilityError("an encoder has not read a text until its last token: no prefix starts from one there.")
    plain = model.twin()
    plain.encoder = None
    plain.sites.pop("prompt", None)
    for i in range(model.shape.layers):
        plain.sites[f"layers.{i}.attention"] = plain.bare(f"layers.{i}.attention")
    cache: list = []
    plain.logits(text[None], cache, last=True)
    each = {f"layers.{i}.attention": [model.host(array)[0] for array in both] for i, both in enumerate(cache)}
    return {site: dict(zip(("prefix_k", "prefix_v"), each[site])) for site in sites}


_KNOWN: dict[str, Callable] = {
    "prompt.embed": _prompt,
    "cpt.embed": _context,
    "prefix.attention": _prefix,
    "prefix.encode": _perceptron,
}
