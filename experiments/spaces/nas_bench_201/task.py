"""Image classification by the cells of NAS-Bench-201."""

from experiments.spaces.images import ImageClassification
from experiments.spaces.nas_bench_201.settings import FINALS, SEARCHES


class NASBench201Task(ImageClassification):
    """Cells that classify images, and whose accuracy after full training is published."""

    name = "nas_bench_201"
    searches = SEARCHES
    finals = FINALS
