"""Every simulation at its small size: built, drawn, its claims hold; and the pages that tell of them."""

import pytest
from matplotlib.figure import Figure

from meanfield import bounds, canvas, gallery

NAMES = gallery.names()


def drawn(figure, stem, dpi):
    """What `canvas.save` does, without the files: those are tested elsewhere, and take seconds."""
    assert isinstance(figure, Figure)
    figure.dpi = 40
    figure.canvas.draw()
    return [stem]


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "save", drawn)
    monkeypatch.setattr(bounds, "PROBES", 20_000)
    outcome = gallery.run(name, tmp_path / name, smoke=True)
    assert outcome.claims and outcome.figures
    assert not outcome.failed, outcome.table()
    assert {claim.verdict(False) for claim in outcome.claims} >= {"holds"}


@pytest.mark.parametrize("name", NAMES)
def test_every_simulation_says_what_it_reproduces(name):
    sim = gallery.load(name)
    assert len(sim.__doc__.splitlines()[0]) > 30 and sim.TITLE and sim.STATEMENT
    assert 0 < sim.MINUTES <= 10
    keys = [gallery.fingerprint(sim, point) for point in (*sim.GRID, *sim.SMOKE)]
    assert len(set(keys[: len(sim.GRID)])) == len(sim.GRID) > 0 and len(sim.SMOKE) > 0
