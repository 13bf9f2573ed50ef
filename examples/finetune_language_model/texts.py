"""The text that is learned first and the one that comes after it, in one vocabulary."""

import re
from typing import NamedTuple

import numpy as np

from wpl_jax.data.text import EOS, UNK, Text, load_text


class Texts(NamedTuple):
    """Both texts as token ids of one vocabulary, and what they are."""

    old: Text
    new: Text
    names: dict[str, str]  # of "old" and "new", for the report
    embedded: bool  # whether the old text is a substitute for the treebank

    def describe(self) -> dict[str, object]:
        return {
            side: {
                "name": self.names[side],
                "tokens": {part: len(getattr(text, part)) for part in ("train", "test")},
                "unknown": round(float(np.mean(text.test == text.vocabulary.index(UNK))), 4),
            }
            for side, text in (("old", self.old), ("new", self.new))
        }


def load(data_dir: str | None) -> Texts:
    """The treebank and the help topics or, where there is no treebank, two halves of the topics.

    Each has three parts: settings are chosen on the validation part, results are of the test part.
    """
    topics = load_text("topics")
    if data_dir is not None:
        old = load_text("ptb", data_dir)
        new = _as_in_treebank(topics, old.vocabulary)
        names = {"old": "Penn Treebank", "new": "Python's help topics"}
        return Texts(old, new, names, embedded=False)

    tokens = np.concatenate([topics.train, topics.validation, topics.test])
    old, new = (_cut(half, topics.vocabulary) for half in np.array_split(tokens, 2))
    names = {"old": "help topics, first half", "new": "help topics, second half"}
    return Texts(old, new, names, embedded=True)


def _as_in_treebank(text: Text, vocabulary: tuple[str, ...]) -> Text:
    """The text as the treebank would have it: without punctuation, and each number is N."""
    ids = {word: i for i, word in enumerate(vocabulary)}

    def encode(part):
        words = (text.vocabulary[token] for token in part)
        kept = (word for word in words if word == EOS or re.match(r"\w", word))
        return np.array(
            [ids.get("N" if word.isdigit() else word, ids[UNK]) for word in kept], np.int32
        )

    return Text(*(encode(part) for part in text[:3]), vocabulary)


def _cut(tokens: np.ndarray, vocabulary: tuple[str, ...]) -> Text:
    """Eight tenths to train on, one to choose settings on, one for the results."""
    cuts = [len(tokens) * 8 // 10, len(tokens) * 9 // 10]
    return Text(*np.split(tokens, cuts), vocabulary)
