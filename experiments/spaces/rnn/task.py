"""Language modelling, what recurrent cells are for: predicting the next word of a text."""

from collections.abc import Mapping
from typing import Any

from experiments.spaces.rnn.final import RNNTraining
from experiments.spaces.rnn.settings import FINALS, SEARCHES, RNNFinal, RNNSearch
from experiments.spaces.task import Task
from wpl_jax.data import Text, load_text, read_text_dir, windows
from wpl_jax.data.text import unknown_share
from wpl_jax.search import Data
from wpl_jax.spaces.rnn import RNN


class LanguageModelling(Task):
    """Recurrent cells that predict the next word."""

    name = "rnn"
    searches = SEARCHES
    finals = FINALS
    training = RNNTraining

    error = "perplexity"
    published = {"forgetting_mean": 0.95, "forgetting_best5": 0.59, "forgetting_max": 0.51}

    def read(self, config: RNNSearch | RNNFinal) -> Text:
        if config.text_dir is not None:
            return read_text_dir(config.text_dir, config.rnn.vocabulary)
        return load_text(config.data, config.data_dir, config.rnn.vocabulary)

    def cut(self, config: RNNSearch, text: Text) -> Data:
        return Data(
            windows(text.train, config.batch_size, config.length),
            windows(text.validation, config.batch_size, config.length),
        )

    def sizes(self, text: Text) -> dict[str, object]:
        return {"vocabulary": len(text.vocabulary)}

    def facts(self, text: Text) -> dict[str, Any]:
        return {"unknown_share": unknown_share(text)}

    def source(self, config: RNNSearch) -> str:
        return config.data if config.text_dir is None else str(config.text_dir)

    def reward(self, space: RNN) -> str:
        return f"{space.reward_scale:g} / err2"

    def remarks(
        self, settings: Mapping[str, RNNSearch | RNNFinal], facts: Mapping[str, Mapping]
    ) -> str:
        """How many words are told apart, and the share of all others."""
        sentences: dict[str, list[str]] = {}
        who = {"search": "The searches", "final": "the final trainings"}
        for name, of_name in facts.items():
            shares = of_name["unknown_share"].items()
            parts = ", ".join(f"{100 * share:.1f} % ({part})" for part, share in shares)
            told = (
                f"tell {settings[name].rnn.vocabulary:,} words apart; all others are one, `<unk>`: "
                f"{parts} of the tokens."
            )
            sentences.setdefault(told, []).append(who[name])
        lines = [f"{' and '.join(of)} {told}" for told, of in sentences.items()]
        return (
            "\n".join(line[0].upper() + line[1:] for line in lines)
            + " `<unk>` is predicted as any other word. Perplexities under different vocabularies "
            "do not compare."
        )
