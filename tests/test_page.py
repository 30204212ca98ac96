"""`make page`: the HTML report is written again when anything that it shows has changed, and only then."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["mine  # as this study is called", '"mine"', "'mine'"])
@pytest.mark.skipif(shutil.which("make") is None, reason="no make: the page's recipe is not tested")
def test_page_is_made_again_when_what_it_shows_has_changed(tmp_path: Path, name: str) -> None:
    results, snakemake = tmp_path / "results/mine", tmp_path / "venv/bin/snakemake"
    for shown in ("tables/table_1.csv", "figures/ladder.png", "record/provenance.html"):
        (results / shown).parent.mkdir(parents=True)
        (results / shown).write_text(shown)
    captions = tmp_path / "src/diver/report/captions"
    captions.mkdir(parents=True)
    captions.joinpath("ladder.rst").write_text("says what is shown")
    (tmp_path / "mine.yaml").write_text(f"name: {name}\n")
    snakemake.parent.mkdir(parents=True)
    snakemake.write_text('#!/bin/sh\necho made >>count\necho page >"$4"\n')
    snakemake.chmod(0o755)

    def made() -> int:
        command = ["make", "-f", str(ROOT / "Makefile"), "page", "VENV=venv", "CONFIG=mine.yaml"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return len((tmp_path / "count").read_text().splitlines())

    assert [made(), made()] == [1, 1]
    (results / "tables/table_2.csv").write_text("one more")
    assert [made(), made()] == [2, 2]
    (results / "record/provenance.html").write_text("other code")
    assert [made(), made()] == [3, 3]
    captions.joinpath("ladder.rst").write_text("says more")
    assert [made(), made()] == [4, 4]
    (results / "figures/ladder.png").touch()
    assert made() == 4
