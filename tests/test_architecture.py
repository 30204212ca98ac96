"""The house: imports go forward only, digests follow imports, environments equal the lock."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from diver.provenance import code_digest, used_modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/diver"
ROOMS = {
    **dict.fromkeys(["config", "provenance", "progress", "tensorfile"], 0),
    **dict.fromkeys(["sets", "study"], 1),
    **dict.fromkeys(["data", "prior", "networks"], 2),
    **dict.fromkeys(["distill", "recover"], 3),
    "students": 4,
    "report": 5,
    "cli": 6,
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


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line) for line in lines)
    return {m[1]: m[2] for m in found if m}


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_environments_equal_the_lock(path: Path) -> None:
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    pinned = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    for requirement in pinned:
        name, version = requirement.split("==")
        assert locked()[name] == version, requirement


def test_every_import_of_a_step_is_in_its_environment() -> None:
    environment_of = dict(
        pair
        for rule in (ROOT / "rules").glob("*.smk")
        for pair in re.findall(r'"\.\./envs/(\w+\.yaml)".*?"\.\./src/steps/(\w+\.py)"', rule.read_text(), re.S)
    )
    assert environment_of
    import sys

    known = {"yaml": "pyyaml", "PIL": "pillow"}
    for rule in (ROOT / "rules").glob("*.smk"):
        for environment, step in re.findall(
            r'"\.\./envs/(\w+\.yaml)".*?"\.\./src/steps/(\w+\.py)"', rule.read_text(), re.S
        ):
            content = (ROOT / "envs" / environment).read_text()
            for module in used_modules(ROOT / "src/steps" / step):
                for node in ast.walk(ast.parse(module.read_text())):
                    names = []
                    if isinstance(node, ast.Import):
                        names = [a.name for a in node.names]
                    elif isinstance(node, ast.ImportFrom) and node.module:
                        names = [node.module]
                    for top in {n.split(".")[0] for n in names} - {"diver"} - sys.stdlib_module_names:
                        assert f"- {known.get(top, top)}==" in content, f"{environment} lacks {top} ({module.name})"
