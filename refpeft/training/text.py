"""Text to train on: documents one behind the other, cut into rows of equal length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refpeft.errors import FormatError


def documents(path: str | os.PathLike[str]) -> Iterator[str]:
    """The whole of a ``.txt`` file, or the ``text`` of each line of a ``.jsonl`` file.

    Raises
    ------
    FormatError
        If the file is not UTF-8, or a line is no JSON object with a text.
    """
    path = Path(path)
    try:
        content = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be UTF-8: {error.reason} at byte {error.start}.") from error
    if path.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise FormatError(f"{path}: line {number} must be a JSON object with a text, got {line[:60]!r}.")
        yield text


def rows(path: str | os.PathLike[str], tokenizer, length: int, ending: int | None = None) -> np.ndarray:
    """The file's tokens in rows, what is left at the end dropped.

    Parameters
    ----------
    path : path-like
    tokenizer : tokenizers.Tokenizer
    length : int
        Of a row, in tokens.
    ending : int, optional
        A token behind each document.

    Returns
    -------
    ids : (count, length) int64

    Raises
    ------
    FormatError
        If the text does not fill a row.
    """
    tokens: list[int] = []
    for text in documents(path):
        tokens += tokenizer.encode(text, add_special_tokens=False).ids
        tokens += [] if ending is None else [ending]
    count = len(tokens) // length
    if not count:
        raise FormatError(f"{path} has {len(tokens)} tokens, expected at least the {length} of a row.")
    return np.array(tokens[: count * length], np.int64).reshape(count, length)


def batch(ids: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """The rows of one step: a pass over all of them in an order drawn by the seed, then another, and so on.

    Parameters
    ----------
    ids : (count, length)
    size : int
    seed, step : int
        Equal ones give equal rows, whatever came before.
    """
    count = len(ids)
    numbers = range(step * size, (step + 1) * size)
    orders = {turn: np.random.default_rng([seed, turn]).permutation(count) for turn in {n // count for n in numbers}}
    return ids[[orders[n // count][n % count] for n in numbers]]
