"""How architectures are trained from scratch, a module a search space."""

from collections.abc import Mapping

from experiments.spaces.micro_cnn.final import CNNTraining
from experiments.spaces.rnn.final import RNNTraining
from experiments.spaces.training import Training

TRAININGS: Mapping[str, type[Training]] = {"rnn": RNNTraining, "micro_cnn": CNNTraining}
