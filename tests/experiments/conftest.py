"""What tests of the scripts share."""

import pytest

from experiments.running import processes


@pytest.fixture(autouse=True)
def whatever_else_the_machine_does(monkeypatch):
    """What is being read is not said: with bad input there would be a line more."""
    monkeypatch.setattr(processes, "SOON", 600)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files: to draw them takes longer than to train a tiny network."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
