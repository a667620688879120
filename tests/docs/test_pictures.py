"""Every picture of the documentation is drawn by its script, is small, and is the one that the pages show."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import planters
import pytest

pytest.importorskip("matplotlib")

DOCS = Path(__file__).parents[2] / "docs"
LARGEST = 100_000
"""Bytes."""


@pytest.mark.long
def test_the_pictures_are_drawn_and_small(tmp_path):
    script = DOCS / "pictures" / "draw.py"
    done = subprocess.run(
        [sys.executable, script, "--out", tmp_path], capture_output=True, text=True, check=True, timeout=600
    )
    drawn = {Path(line) for line in done.stdout.splitlines()}
    assert drawn == set(tmp_path.glob("*.png"))
    assert len(drawn) >= 3
    assert all(path.stat().st_size <= LARGEST for path in drawn)


def test_every_picture_on_a_page_exists_is_small_and_has_a_description():
    shown = []
    for page in DOCS.rglob("*.md"):
        for text, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text("utf-8"), re.DOTALL):
            picture = page.parent / target
            assert picture.exists(), (page.name, target)
            assert picture.stat().st_size <= LARGEST, target
            assert len(text) > 20, (page.name, target)
            shown.append(picture.name)
    assert {"block-transform.png", "conv-basis.png", "sparsek-intervals.png"} <= set(shown)


@pytest.mark.parametrize(
    "name", ["from_scratch", "from_scratch_losses", "from_scratch_text", "from_scratch_text_losses"]
)
def test_a_study_is_drawn_if_it_is_whole(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))
    rows = planters.study_rows(0.1, "text" if "text" in name else "recall")
    module = importlib.import_module(name)
    importlib.import_module("style").save(module.draw(rows), tmp_path / "drawn.png")
    assert 5_000 < (tmp_path / "drawn.png").stat().st_size <= LARGEST
    with pytest.raises(ValueError, match="not whole: routing: 1 trainings"):
        module.draw([row for row in rows if (row["method"], row["seed"]) != ("routing", 1)])


def test_the_study_of_conv_attention_is_drawn_if_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))
    module = importlib.import_module("conv_from_scratch")
    rows = [row for task, methods in module.METHODS.items() for row in planters.conv_study_rows(0.1, task, methods)]
    importlib.import_module("style").save(module.draw(rows), tmp_path / "drawn.png")
    assert 5_000 < (tmp_path / "drawn.png").stat().st_size <= LARGEST
    with pytest.raises(ValueError, match="bytes that is not whole came: spread: 1 trainings"):
        module.draw([row for row in rows if (row["task"], row["method"], row["seed"]) != ("bytes", "spread", 1)])
