"""The pages: what they link to is there, and the commands they show exist."""

import re
from pathlib import Path

import pytest

from diver.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page: Path) -> None:
    """Files of the checkout that a page names: configurations, benchmarks, tests."""
    named = re.findall(r"[\s`(]((?:config|benchmarks|tests|profiles)/[\w/.-]+\.(?:yaml|py|sh|md))", page.read_text())
    for path in set(named) - {"config/my-study.yaml"}:
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_commands_exist() -> None:
    """Each `diver COMMAND` and `make TARGET` that a page shows."""
    text = "\n".join(page.read_text() for page in PAGES)
    known = {command.__name__.rstrip("_") for command in COMMANDS}
    code = "\n".join([*re.findall(r"`([^`]+)`", text), *re.findall(r"^    (.+)$", text, re.M)])
    assert set(re.findall(r"(?:^|&& |then )diver ([a-z]+)", code, re.M)) <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|&& )make ([a-z]+)", code, re.M)) <= targets
