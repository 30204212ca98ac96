"""The house: imports go forward only, digests follow imports, environments equal the lock."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from diver import provenance
from diver.provenance import code_digest, used_modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/diver"
ROOMS = {
    **dict.fromkeys(["gpu", "graphs", "places", "workers"], -1),
    **dict.fromkeys(["config", "provenance", "progress", "tensorfile"], 0),
    **dict.fromkeys(["sets", "study"], 1),
    **dict.fromkeys(["data", "networks", "pictures", "setfile"], 2),
    **dict.fromkeys(["prior", "importers", "exports", "text"], 3),
    **dict.fromkeys(["checks", "cost", "distill", "recover"], 4),
    "students": 5,
    "report": 6,
    "cli": 7,
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "diver" else [node.module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        rooms.update(name.split(".")[1] for name in names if name.startswith("diver."))
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_goes_back(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for other in imported_rooms(path):
        allowed = ROOMS[other] < ROOMS[room] or other == room
        assert allowed, f"{room} imports {other}"


def test_settings_are_light() -> None:
    """The configuration is checked before torch is loaded."""
    settings = [module for path in (PACKAGE / "config").rglob("*.py") for module in used_modules(path)]
    for path in dict.fromkeys([*settings, *used_modules(PACKAGE / "study.py")]):
        assert not re.search(r"^(from|import) (torch|diffusers|timm|pandas)", path.read_text(), re.M), path


def test_digest_follows_what_a_step_imports() -> None:
    students = {p.name for p in used_modules(ROOT / "src/steps/train_students.py")}
    recover = {str(p.relative_to(ROOT / "src")) for p in used_modules(ROOT / "src/steps/recover_set.py")}
    assert "sampler.py" not in students
    assert {"diver/recover/sampler.py", "diver/prior/load.py", "diver/sets.py"} <= recover
    assert not any(name.startswith("diver/students") for name in recover)


def forget() -> None:
    for known in (provenance._files, provenance._local_imports):
        known.cache_clear()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of src/, with a package of two modules."""
    package = tmp_path / "diver"
    package.mkdir()
    for name in ("__init__", "used", "unused"):
        (package / f"{name}.py").write_text("A = 1\n")
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)
    forget()
    yield tmp_path
    forget()


def test_digest_changes_with_an_imported_module(source: Path) -> None:
    step = source / "step.py"
    step.write_text("from diver.used import A\n")

    def digest() -> str:
        forget()
        return code_digest(step)

    first = digest()
    (source / "diver/unused.py").write_text("A = 2\n")
    assert digest() == first
    (source / "diver/used.py").write_text("A = 2\n")
    assert digest() != first


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "def f(x):\n    if x:\n        {}",
        "class A:\n    async def f(self):\n        async with self:\n            {}",
        "try:\n    pass\nexcept ValueError:\n    {}",
        "try:\n    pass\nexcept* ValueError:\n    pass\nelse:\n    {}\nfinally:\n    pass",
        "try:\n    pass\nfinally:\n    {}",
        "for x in ():\n    while x:\n        pass\n    else:\n        {}",
        "match 1:\n    case 2:\n        pass\n    case _:\n        {}",
    ],
)
@pytest.mark.parametrize("line", ["from diver.used import A", "import os, diver.used as u", "from diver import used"])
def test_an_import_is_found_wherever_it_stands(around: str, line: str, source: Path) -> None:
    step = source / "step.py"
    step.write_text(around.format(line) + "\n")
    assert used_modules(step) == sorted([step, source / "diver/__init__.py", source / "diver/used.py"])


def lock_of(environment: Path) -> Path:
    """An environment's own lock, if it has one, else the project's."""
    own = ROOT / f"requirements-{environment.stem}.lock"
    return own if own.exists() else ROOT / "requirements.lock"


def locked(lock: Path) -> dict[str, str]:
    found = (re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line) for line in lock.read_text().splitlines())
    # A package that is pinned twice is pinned first for the oldest Python, which the environments use.
    versions: dict[str, str] = {}
    for match in filter(None, found):
        versions.setdefault(match[1], match[2])
    return versions


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_environments_equal_the_lock(path: Path) -> None:
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    pinned = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    versions = locked(lock_of(path))
    for requirement in pinned:
        name, version = requirement.partition(" ; ")[0].split("==")
        assert versions[name] == version, requirement


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.lock")), ids=lambda p: p.stem)
def test_locks_share_torch_and_name_no_host(path: Path) -> None:
    """One torch build for students and judge, and files that say nothing of where they were made."""
    ours, here = locked(ROOT / "requirements.lock"), locked(path)
    assert (here["torch"], here["torchvision"]) == (ours["torch"], ours["torchvision"])
    text = path.read_text()
    assert "://" not in text and "-index" not in text and "--find-links" not in text
    assert text.count("--hash=sha256:") >= len(here)


@cache
def packages(module: Path) -> set[str]:
    """Packages from outside that a module imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[0] for name in names} - {"diver"} - sys.stdlib_module_names


# Where an import has another name than its package.
PACKAGE_OF = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
RULE = re.compile(r"^ *rule (\w+):\n(.*?)(?=^ *rule \w+:|\Z)", re.M | re.S)


def running_rules() -> dict[str, str]:
    """Text of each rule that runs something, by name."""
    texts = [path.read_text() for path in (ROOT / "rules").glob("*.smk")]
    rules = {name: body for text in texts for name, body in RULE.findall(text)}
    return {name: body for name, body in rules.items() if re.search(r"^ *(script|shell|run|notebook):", body, re.M)}


def test_every_rule_that_runs_something_names_an_environment() -> None:
    rules = running_rules()
    assert len(rules) >= len(list((ROOT / "src/steps").glob("*.py")))
    for name, body in rules.items():
        named = re.search(r"conda:\s+\"\.\./(envs/\w+\.yaml)\"", body)
        assert named, f"rule {name} names no environment: give it `conda:` with a file of envs/"
        assert (ROOT / named[1]).exists(), f"rule {name}: {named[1]} does not exist"


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_environments_are_exact_and_each_is_used(path: Path) -> None:
    entries = yaml.safe_load(path.read_text())["dependencies"]
    plain = [entry for entry in entries if isinstance(entry, str)]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest and plain == [f"python={oldest[1]}", "pip"], (
        f"{path.name}: python={oldest and oldest[1]} and pip first"
    )
    pins = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    assert pins == sorted(pins), f"{path.name}: the list is in alphabetical order"
    loose = [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; sys_platform == '\w+')?", pin)]
    assert not loose, f"{path.name}: not exact: {loose}"
    used = (ROOT / "rules").glob("*.smk") if path.stem != "ddranking" else [ROOT / "Makefile"]
    assert any(f"envs/{path.name}" in file.read_text() for file in used), f"{path.name} is named by no rule"


def test_every_import_of_a_step_is_in_its_environment() -> None:
    """Imports inside functions too, of every module that a step's modules import, since any of them may be reached."""
    pattern = re.compile(r'"\.\./envs/(\w+\.yaml)".*?"\.\./src/steps/(\w+\.py)"', re.S)
    pairs = [pair for body in running_rules().values() for pair in pattern.findall(body)]
    assert {step for _, step in pairs} == {p.name for p in (ROOT / "src/steps").glob("*.py")}
    lacking: dict[str, set[str]] = {}
    for environment, step in pairs:
        content, lock = (ROOT / "envs" / environment).read_text(), locked(ROOT / "requirements.lock")
        for module in used_modules(ROOT / "src/steps" / step):
            for package in (PACKAGE_OF.get(top, top.replace("_", "-")) for top in packages(module)):
                if f"- {package}==" not in content:
                    where = f"{module.relative_to(ROOT / 'src')}, which {step} uses"
                    line = f"envs/{environment} lacks `- {package}=={locked_or_note(lock, package)}`"
                    lacking.setdefault(line, set()).add(where)
    assert not lacking, "\n".join(f"{line}: imported by {'; '.join(sorted(by))}" for line, by in lacking.items())


def locked_or_note(lock: dict[str, str], package: str) -> str:
    return lock.get(package, " (a version; it is not in requirements.lock: is the package called otherwise?)")
