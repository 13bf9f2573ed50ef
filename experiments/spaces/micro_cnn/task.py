"""Image classification by pairs of cells."""

from experiments.spaces.images import ImageClassification
from experiments.spaces.micro_cnn.final import CNNTraining
from experiments.spaces.micro_cnn.settings import FINALS, SEARCHES


class MicroCNNTask(ImageClassification):
    """Pairs of cells that classify images."""

    name = "micro_cnn"
    searches = SEARCHES
    finals = FINALS
    training = CNNTraining

    published = {"forgetting_mean": 0.99, "forgetting_best5": 0.96, "forgetting_max": 0.98}
