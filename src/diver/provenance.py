"""Digest of the code that a step uses, so that editing a module reruns exactly the steps that import it.

Snakemake compares a rule's parameters between runs but does not look into imported modules;
each rule therefore carries `code_digest("src/steps/<step>.py")` as a parameter.
"""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]


def _statements(block: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All of a block, nested ones too. Expressions hold none, and are nine tenths of what `ast.walk` goes through."""
    for one in block:
        yield one
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(one, part, ()))
        for branch in (*getattr(one, "handlers", ()), *getattr(one, "cases", ())):
            yield from _statements(branch.body)


@cache
def _files(module: str) -> frozenset[Path]:
    """What of `src/` importing a module runs; importing a.b.c also runs a/__init__.py and a/b/__init__.py."""
    package = module.rpartition(".")[0]
    stem = SOURCE.joinpath(*module.split("."))
    own = {file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.exists()}
    return frozenset(own) | (_files(package) if package else frozenset())


@cache
def _local_imports(path: Path) -> frozenset[Path]:
    names: list[str] = []
    for node in _statements(ast.parse(path.read_text(), filename=str(path)).body):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return frozenset[Path]().union(*(_files(name) for name in names))


def used_modules(script: str | Path) -> list[Path]:
    """The script and every module under `src/` that it imports, directly or through another, sorted."""
    seen: set[Path] = set()
    todo = [Path(script).resolve()]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo.extend(_local_imports(path))
    return sorted(seen)


def code_digest(script: str | Path) -> str:
    """16 hexadecimal digits over the names and bytes of `used_modules(script)`."""
    digest = hashlib.sha256()
    for path in used_modules(script):
        name = path.relative_to(SOURCE) if path.is_relative_to(SOURCE) else path.name
        digest.update(str(name).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
