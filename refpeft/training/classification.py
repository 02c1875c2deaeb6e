"""Texts with labels: each a row of its own, as long as it is, beside the others of its batch with padding behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refpeft.errors import AttributeValueError, FormatError
from refpeft.formats.names import numbered
from refpeft.training.text import is_text, objects


class Example(NamedTuple):
    """A line of a file: a text, and its label by name or by number, or None where it has none."""

    text: str
    label: str | int | None


@dataclass(frozen=True)
class Labelled:
    """Texts as token ids, and their labels.

    Attributes
    ----------
    texts : tuple of (s,) int64
    labels : (n,) int64 or None
    names : tuple of str
        Of the labels.
    """

    texts: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        labels = None if self.labels is None else self.labels[list(rows)]
        return Labelled(tuple(self.texts[i] for i in rows), labels, self.names)

    @property
    def size(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.texts))

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.texts))

    @property
    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, s), and which of them are no padding, as `refpeft.models.TextClassifier.logits` takes them."""
        ids = np.zeros((len(self), self.longest), np.int64)
        mask = np.arange(self.longest) < np.array([len(text) for text in self.texts])[:, None]
        ids[mask] = np.concatenate(self.texts)
        return ids, mask


def examples(path: str | os.PathLike[str], needed: bool = True) -> list[Example]:
    """The lines of a ``.jsonl`` file of objects with a ``text`` and a ``label``; with a text alone, where labels are not needed
    and no line has one.

    Raises
    ------
    FormatError
        If it is another file, empty, or a line is no such object.
    """
    if Path(path).suffix != ".jsonl":
        raise FormatError(f"{path} must be a .jsonl file of objects with a text and a label.")
    found, lines = [], list(objects(path))
    needed = needed or any("label" in row for _, _, row in lines)
    wanted = "a text and a label, its name or its number" if needed else "a text"
    for number, line, row in lines:
        text, label = row.get("text"), row.get("label")
        known = is_text(label) or (isinstance(label, int) and not isinstance(label, bool))
        if not is_text(text) or (needed and not known):
            raise FormatError(f"{path}: line {number} must be a JSON object with {wanted}, got {line[:60]!r}.")
        found.append(Example(text, label))
    if not found:
        raise FormatError(f"{path} has no line, expected texts with labels.")
    return found


def names(path: str | os.PathLike[str], found: Sequence[Example]) -> tuple[str, ...]:
    """What the labels of a file are called, in order: names as they sort, numbers as transformers calls them.

    Raises
    ------
    FormatError
        If there is one label only, some are names and others numbers, or a number is left out.
    """
    labels = {example.label for example in found if example.label is not None}
    if len(labels) < 2:
        raise FormatError(f"{path}: all texts have the label {labels.pop()!r}, expected two labels at least.")
    texts = sorted(label for label in labels if isinstance(label, str))
    numbers = sorted(label for label in labels if isinstance(label, int))
    if texts and numbers:
        raise FormatError(f"{path}: labels must be all names or all numbers, but {texts[0]!r} and {numbers[0]} came.")
    if numbers and numbers != list(range(len(numbers))):
        raise FormatError(
            f"{path}: labels must be numbers from 0 on, none left out, unless they are given names; but "
            f"{', '.join(map(str, numbers[:9]))} came."
        )
    return tuple(texts) or numbered(len(numbers))


def labelled(
    path: str | os.PathLike[str], found: Sequence[Example], names: tuple[str, ...], tokenizer, length: int
) -> Labelled:
    """The examples of a file as a model takes them: with the tokenizer's special tokens, cut to so many.

    Raises
    ------
    AttributeValueError
        If the names are not different ones, or the length leaves no room for a text.
    FormatError
        If a label is none of those that are named, or a text has no tokens.
    """
    if len({*names}) < max(2, len(names)):
        raise AttributeValueError(f"labels must be two different ones at least, but {', '.join(names)} came.")
    if length <= (special := tokenizer.num_special_tokens_to_add(is_pair=False)):
        raise AttributeValueError(
            f"a text must have room for more than its {special} special tokens, but {length} came."
        )
    numbers = [_number(path, i, e.label, names) for i, e in enumerate(found, 1) if e.label is not None]
    labels = np.array(numbers, np.int64) if numbers else None
    tokenizer.enable_truncation(max_length=length)
    texts = tuple(np.array(made.ids, np.int64) for made in tokenizer.encode_batch([example.text for example in found]))
    if empty := [i for i, text in enumerate(texts, 1) if not len(text)]:
        raise FormatError(f"{path}: the text of line {empty[0]} has no tokens.")
    return Labelled(texts, labels, names)


def _number(path, line: int, label: str | int, names: tuple[str, ...]) -> int:
    """That of a label."""
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if label not in names:
        known = ", ".join(names[:9]) + (", ..." if len(names) > 9 else "")
        raise FormatError(f"{path}: the label of line {line} is {label!r}, expected one of {known}, or its number.")
    return names.index(label)
