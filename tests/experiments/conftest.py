"""What tests of the scripts share."""

import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files: to draw them takes longer than to train a tiny network."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
