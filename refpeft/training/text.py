"""Text to train on: documents one behind the other, cut into rows of equal length."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from refpeft.errors import FormatError
from refpeft.files import named


def documents(path: str | os.PathLike[str]) -> Iterator[str]:
    """The whole of a ``.txt`` file, or the ``text`` of each line of a ``.jsonl`` file.

    Raises
    ------
    FormatError
        If the file is not UTF-8, or a line is no JSON object with a text.
    """
    if Path(path).suffix != ".jsonl":
        yield _content(path)
        return
    for number, line, row in objects(path):
        if not is_text(text := row.get("text")):
            raise FormatError(f"{path}: line {number} must be a JSON object with a text, got {line[:60]!r}.")
        yield text


def objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The lines of a ``.jsonl`` file: number, line, and the JSON object that it is; an empty one where it is none.

    Raises
    ------
    FormatError
        If the file is not UTF-8.
    """
    for number, line in enumerate(io.StringIO(_content(path)), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield number, line.removesuffix("\n"), row if isinstance(row, dict) else {}


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a string that can be written: JSON's escapes can also make one with half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _content(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be UTF-8: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        named(error, path)
        raise


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
    return _cut(path, _joined(_encoded(path, tokenizer, ending)), length)


def parted(path: str | os.PathLike[str], tokenizer, length: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows that are held out: about a share of the tokens.

    Where the file has several documents, whole ones are held out, drawn once and for all; else the end of the text.

    Parameters
    ----------
    path : path-like
    tokenizer : tokenizers.Tokenizer
    length : int
        Of a row, in tokens.
    share : float
        Between 0 and 1.

    Returns
    -------
    trained, held : (count, length) int64

    Raises
    ------
    FormatError
        If one of them does not fill a row.
    """
    texts = _encoded(path, tokenizer)
    wanted = math.ceil(share * sum(map(len, texts)))
    if len(texts) == 1:
        trained, held = texts[0][:-wanted], texts[0][-wanted:]
    else:
        order = np.random.default_rng(0).permutation(len(texts))
        reached = np.cumsum([len(texts[i]) for i in order])
        chosen = set(order[: np.searchsorted(reached, wanted) + 1])
        trained, held = (_joined(t for i, t in enumerate(texts) if (i in chosen) == out) for out in (False, True))
    return _cut(path, trained, length, " to train on"), _cut(path, held, length, " held out")


def _encoded(path: str | os.PathLike[str], tokenizer, ending: int | None = None) -> list[list[int]]:
    """The tokens of each document."""
    last = [] if ending is None else [ending]
    return [[*token_ids(text, tokenizer), *last] for text in documents(path)]


def token_ids(words: str, tokenizer) -> tuple[int, ...]:
    """Those of a text, with none around it."""
    return tuple(tokenizer.encode(words, add_special_tokens=False).ids)


def _joined(texts: Iterable[list[int]]) -> list[int]:
    return [token for text in texts for token in text]


def _cut(path, tokens: list[int], length: int, what: str = "") -> np.ndarray:
    """Tokens in rows; what is left at the end is dropped."""
    count = len(tokens) // length
    if not count:
        raise FormatError(f"{path} has {len(tokens)} tokens{what}, expected at least the {length} of a row.")
    return np.array(tokens[: count * length], np.int64).reshape(count, length)


def batch(rows: Any, size: int, seed: int, step: int) -> Any:
    """The rows of one step: a pass over all of them in an order drawn by the seed, then another, and so on.

    Parameters
    ----------
    rows : (count, length) int64, or refpeft.training.classification.Labelled
    size : int
    seed, step : int
        Equal ones give equal rows, whatever came before.
    """
    count = len(rows)
    numbers = range(step * size, (step + 1) * size)
    orders = {turn: np.random.default_rng([seed, turn]).permutation(count) for turn in {n // count for n in numbers}}
    return rows[[orders[n // count][n % count] for n in numbers]]
