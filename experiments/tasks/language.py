"""Language modelling, what recurrent cells are for: predicting the next word of a text."""

import hashlib
from typing import TypeVar

from experiments.configs.search import RNNSearch
from experiments.configs.train_final import RNNFinal
from wpl_jax.search import Data
from wpl_jax.text import Text, load_text, read_text_dir, unknown_share, windows

Settings = TypeVar("Settings", RNNSearch, RNNFinal)

ERROR = "perplexity"


def read(config: RNNSearch | RNNFinal) -> Text:
    if config.text_dir is not None:
        return read_text_dir(config.text_dir, config.rnn.vocabulary)
    return load_text(config.data, config.data_dir, config.rnn.vocabulary)


def fit(config: Settings, text: Text) -> Settings:
    return config.with_space(vocabulary=len(text.vocabulary))


def cut(config: RNNSearch, text: Text) -> Data:
    return Data(
        windows(text.train, config.batch_size, config.length),
        windows(text.validation, config.batch_size, config.length),
    )


def fingerprint(text: Text) -> dict[str, object]:
    digest = hashlib.sha256("\n".join(text.vocabulary).encode())
    for tokens in (text.train, text.validation, text.test):
        digest.update(tokens.tobytes())
    return {"text": digest.hexdigest()}


def facts(text: Text) -> dict[str, object]:
    return {"unknown_share": unknown_share(text)}
