"""The house: imports go forward only, digests follow imports, environments equal the lock."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from diver.provenance import code_digest, used_modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/diver"
ROOMS = {
    **dict.fromkeys(["gpu", "places", "workers"], -1),
    **dict.fromkeys(["config", "provenance", "progress", "tensorfile"], 0),
    **dict.fromkeys(["sets", "study"], 1),
    **dict.fromkeys(["data", "networks", "pictures", "setfile"], 2),
    **dict.fromkeys(["prior", "importers", "exports", "text", "checks", "cost"], 3),
    **dict.fromkeys(["distill", "recover"], 4),
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
    for path in (PACKAGE / "config").glob("*.py"):
        assert not re.search(r"^(from|import) (torch|diffusers|timm|pandas)", path.read_text(), re.M), path


def test_digest_follows_what_a_step_imports() -> None:
    students = {p.name for p in used_modules(ROOT / "src/steps/train_students.py")}
    recover = {str(p.relative_to(ROOT / "src")) for p in used_modules(ROOT / "src/steps/recover_set.py")}
    assert "sampler.py" not in students
    assert {"diver/recover/sampler.py", "diver/prior/load.py", "diver/sets.py"} <= recover
    assert not any(name.startswith("diver/students") for name in recover)


def test_digest_changes_with_an_imported_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diver.provenance as provenance

    package = tmp_path / "diver"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "used.py").write_text("A = 1\n")
    (package / "unused.py").write_text("B = 1\n")
    step = tmp_path / "step.py"
    step.write_text("from diver.used import A\n")
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)

    def digest() -> str:
        provenance._local_imports.cache_clear()
        return code_digest(step)

    first = digest()
    (package / "unused.py").write_text("B = 2\n")
    assert digest() == first
    (package / "used.py").write_text("A = 2\n")
    assert digest() != first


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
        name, version = requirement.split("==")
        assert versions[name] == version, requirement


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.lock")), ids=lambda p: p.stem)
def test_locks_share_torch_and_name_no_host(path: Path) -> None:
    """One torch build for students and judge, and files that say nothing of where they were made."""
    ours, here = locked(ROOT / "requirements.lock"), locked(path)
    assert (here["torch"], here["torchvision"]) == (ours["torch"], ours["torchvision"])
    text = path.read_text()
    assert "://" not in text and "-index" not in text and "--find-links" not in text
    assert text.count("--hash=sha256:") >= len(here)


def packages(module: Path) -> set[str]:
    """Packages from outside that a module imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.split(".")[0] for name in names} - {"diver"} - sys.stdlib_module_names


def test_every_import_of_a_step_is_in_its_environment() -> None:
    known = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
    pattern = re.compile(r'"\.\./envs/(\w+\.yaml)".*?"\.\./src/steps/(\w+\.py)"', re.S)
    pairs = [pair for rule in (ROOT / "rules").glob("*.smk") for pair in pattern.findall(rule.read_text())]
    assert {step for _, step in pairs} == {p.name for p in (ROOT / "src/steps").glob("*.py")}
    for environment, step in pairs:
        content = (ROOT / "envs" / environment).read_text()
        for module in used_modules(ROOT / "src/steps" / step):
            for top in packages(module):
                assert f"- {known.get(top, top)}==" in content, f"{environment} lacks {top} ({module.name})"
