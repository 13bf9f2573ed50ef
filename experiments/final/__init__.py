"""How architectures are trained from scratch, a module a search space."""

from collections.abc import Mapping

from experiments.final.micro_cnn import CNNTraining
from experiments.final.rnn import RNNTraining
from experiments.final.training import Training

TRAININGS: Mapping[str, type[Training]] = {"rnn": RNNTraining, "micro_cnn": CNNTraining}
