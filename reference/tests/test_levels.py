"""The picture of the levels: drawn, reproducible, and where the lesson says it is."""

from pathlib import Path

import numpy as np
import pytest

import qloracle as q
from qloracle.examples import levels

COMMITTED = Path(__file__).parents[1] / "docs" / "levels.png"


def test_the_picture_is_drawn_and_reproducible(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    pictures = []
    for folder in ("one", "two"):
        levels.main(["--out", str(tmp_path / folder)])
        pictures.append((tmp_path / folder / "levels.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")
    assert 20_000 < len(pictures[0]) < 120_000


def test_the_curve_is_the_one_whose_quantiles_the_levels_are():
    """Below a level of the positive side lies its probability, evenly spaced up to the offset."""
    x = np.linspace(-4, 4, 80_001)  # the outermost 1e-13 are cut off
    below = np.cumsum(levels.density(x))
    below /= below[-1]
    found = np.interp(q.nf4_codebook()[7:], x, below)
    np.testing.assert_allclose(found, np.linspace(0.5, 0.9677083, 9), atol=1e-4)


def test_the_lesson_says_where_the_picture_is():
    assert f"reference/docs/{COMMITTED.name}" in str(q.codebook.__doc__)
    assert COMMITTED.read_bytes().startswith(b"\x89PNG")


def test_usage(capsys, monkeypatch):
    monkeypatch.setattr(levels, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as raised:
        levels.main(["--out", "."])
    assert raised.value.code == 2
    assert (
        "matplotlib is not installed: pip install 'qloracle[examples]'" in capsys.readouterr().err
    )
