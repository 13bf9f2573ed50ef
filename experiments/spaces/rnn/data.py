"""Language modelling, what recurrent cells are for: predicting the next word of a text."""

import hashlib
from collections.abc import Mapping

from experiments.spaces.final_settings import RNNFinal
from experiments.spaces.search_settings import RNNSearch
from wpl_jax.data.text import Text, load_text, read_text_dir, unknown_share, windows
from wpl_jax.search import Data
from wpl_jax.spaces.rnn import RNN

ERROR = "perplexity"
UNIT = ""
SCALE = 1
WHOLE = "every token of the validation and test texts"
FIGURE = 3
PUBLISHED = {"forgetting_mean": 0.95, "forgetting_best5": 0.59, "forgetting_max": 0.51}


def read(config: RNNSearch | RNNFinal) -> Text:
    if config.text_dir is not None:
        return read_text_dir(config.text_dir, config.rnn.vocabulary)
    return load_text(config.data, config.data_dir, config.rnn.vocabulary)


def sizes(text: Text) -> dict[str, object]:
    return {"vocabulary": len(text.vocabulary)}


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


def source(config: RNNSearch) -> str:
    return config.data if config.text_dir is None else str(config.text_dir)


def reward(space: RNN) -> str:
    return f"{space.reward_scale:g} / err2"


def remarks(settings: Mapping[str, RNNSearch | RNNFinal], facts: Mapping[str, Mapping]) -> str:
    """How many words are told apart, and the share of all others."""
    sentences: dict[str, list[str]] = {}
    for name, who in (("search", "The searches"), ("final", "the final trainings")):
        shares = facts[name]["unknown_share"].items()
        parts = ", ".join(f"{100 * share:.1f} % ({part})" for part, share in shares)
        told = (
            f"tell {settings[name].rnn.vocabulary:,} words apart; all others are one, `<unk>`: "
            f"{parts} of the tokens."
        )
        sentences.setdefault(told, []).append(who)
    lines = [f"{' and '.join(who)} {told}" for told, who in sentences.items()]
    return (
        "\n".join(line[0].upper() + line[1:] for line in lines)
        + " `<unk>` is predicted as any other word. Perplexities under different vocabularies do "
        "not compare."
    )
