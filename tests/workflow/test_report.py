"""The HTML report in a browser, the tables of the paper as targets, and the record of the study."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from running import ROOT, run


@pytest.fixture(scope="module")
def report(finished: Path) -> Path:
    path = finished / "report.html"
    result = run(finished, "--report", path.name)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: the HTML report was not opened in a browser")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_report_loads_offline_and_its_navigation_opens_everything(report: Path, browser: Browser) -> None:
    browser.open(report)
    browser.click("Galleries")
    browser.click_icon("The same images under each treatment", "eye")
    browser.until(
        "[...document.images].some(image => image.src.startsWith('data:image/png') && image.naturalWidth > 0)"
    )
    browser.click_icon("The same images under each treatment", "information-circle")
    browser.until("document.body.textContent.includes('all images of a column come from the same stage-1 image')")
    for category, row in (("Tables", "Table 6: Ladder"), ("Study", "3 Provenance of every file")):
        browser.open(report)
        browser.click(category)
        browser.click_icon(row, "eye")
        browser.until("document.querySelector('iframe') !== null")
    outside = [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert not outside and not browser.faults, (outside, browser.faults)
    # Every result is inside the file: pictures have pixels, pages have rows.
    shown = browser.evaluate(
        """(async () => {
          const found = {};
          for (const [path, one] of Object.entries(results)) {
            const uri = one.data_uri;
            if (path.endsWith('.png')) {
              const image = new Image(); image.src = uri; await image.decode(); found[path] = image.naturalWidth;
            } else if (path.endsWith('.html')) {
              const page = new DOMParser().parseFromString(await (await fetch(uri)).text(), 'text/html');
              found[path] = page.querySelectorAll('tbody tr').length;
            }
          }
          return found;
        })()"""
    )
    names = {Path(path).name for path in shown}
    assert {"gallery.png", "phases.png", "rulegraph.png", "summary.html", "provenance.html", "table_6.html"} <= names
    assert all(count > 0 for count in shown.values()), shown


def test_table_of_the_paper_takes_what_is_there_and_trains_nothing(finished: Path, tmp_path: Path) -> None:
    tables, so_far = finished / "results/test/tables", finished / "results/test/so_far"
    whole = (tables / "table_6.md").read_text()
    students = finished / "results/test/students/cifar10-slice/ipc2/dm/diver/matched/all.csv"
    students.rename(tmp_path / students.name)
    try:
        result = run(finished, "table_6")
        assert result.returncode == 0, result.stderr[-3000:]
        assert not students.exists()
        assert "not run: no student yet" in (so_far / "table_6.md").read_text()
    finally:
        (tmp_path / students.name).rename(students)
    # The study's own table, which nothing would make again, is left as it is.
    assert (tables / "table_6.md").read_text() == whole
    refused = run(finished, "table_9")
    assert refused.returncode != 0
    assert "the study 'test' has no table_9; it has table_1, table_6, table_8, figure_5, figure_7" in refused.stderr


def test_record_names_every_file_with_its_digest_rule_and_chain(finished: Path) -> None:
    folder = finished / "results/test/record"
    files = pd.read_csv(folder / "files.csv", keep_default_na=False).set_index("file")
    for path, row in files.sample(12, random_state=0).iterrows():
        assert hashlib.sha256((finished / str(path)).read_bytes()).hexdigest() == row["sha256"]
    assert (files["rule"] != "").all() and files["code"].str.fullmatch("[0-9a-f]{16}").all()
    recovered = "results/test/recovered/cifar10-slice/ipc2/dm/diver.safetensors"
    assert files.loc[recovered, "rule"] == "recover_set"
    assert files.loc["results/test/tables/table_6.csv", "rule"] == "make_paper_tables"
    chains = pd.read_csv(folder / "chains.csv")
    mine = chains[chains["file"] == recovered]
    assert list(mine["method"]) == ["dm", "diver"] and "t_f 2" in mine["parameters"].iloc[1]
    page = (folder / "provenance.html").read_text()
    assert recovered in page and files.loc[recovered, "sha256"] in page
    times = pd.read_csv(folder / "run_times.csv").set_index("rule")
    assert times.loc["students", "jobs"] == 11 and (times["seconds"] > 0).all()
    assert "torch" in set(pd.read_csv(folder / "versions.csv")["package"])
    assert not re.search(re.escape(str(finished)), page + (folder / "summary.html").read_text())


@pytest.mark.skipif(not shutil.which("snakemake"), reason="snakemake is not on the path")
def test_rule_graph_of_the_readme_is_current(finished: Path) -> None:
    result = run(finished, "results/default/record/rulegraph.svg", study="config/default.yaml")
    assert result.returncode == 0, result.stderr[-3000:]
    made = (finished / "results/default/record/rulegraph.svg").read_text()
    assert made == (ROOT / "docs/rulegraph.svg").read_text(), (
        "snakemake results/default/record/rulegraph.svg --cores 1; cp results/default/record/rulegraph.svg docs/"
    )
