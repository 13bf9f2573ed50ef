"""What kinds of search and cells are called."""

from experiments.compare.plan import ARMS

OTHERS = {"random": "random cells", "enas": "ENAS's cell", "darts_style": "DARTS-style cell"}
LABELS = {arm.name: arm.label for arm in ARMS} | OTHERS


def label(name: str) -> str:
    """Of a kind of search, or of a cell."""
    return LABELS.get(name, name)
