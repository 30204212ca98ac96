"""A stand-in for `conda`, for machines that have none and reach no channel: it is no conda and solves nothing.

It answers what Snakemake 9 asks of conda. An environment is a bare virtual environment of the Python that runs this, in
which the packages of the file's pip list, and what they require, are links to the installed ones. So a step finds what
its environment's file gives it and nothing else, whatever is installed beside. It refuses what the real one could not
do either: a pin that is not installed in just that version, or channels other than the project's.

Every Python that ends in such an environment adds a line to `ran.jsonl` in it: its prefix, its script, and the modules
that came from elsewhere.
"""

import json
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BASE = Path(__file__).resolve().parent
CHANNELS = ["conda-forge", "nodefaults"]
ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'
WITNESS = """\
import atexit, json, sys


def tell():
    files = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    inside = (sys.prefix, sys.base_prefix, "<")
    foreign = sorted(name for name, file in files.items() if file.startswith("/") and not file.startswith(inside))
    with open(sys.prefix + "/ran.jsonl", "a") as log:
        log.write(json.dumps({"prefix": sys.prefix, "script": sys.argv[0], "foreign": foreign}) + "\\n")


atexit.register(tell)
"""


def required(pins: list[str]) -> dict[str, Distribution]:
    """The distributions of a pip list and all that they require, by name. Exits with the reason if one is lacking."""
    found: dict[str, Distribution] = {}
    todo = [(Requirement(pin), "the environment's file") for pin in pins]
    while todo:
        wanted, by = todo.pop()
        try:
            one = distribution(wanted.name)
        except PackageNotFoundError:
            sys.exit(f"conda stand-in: {wanted}, which {by} asks for, is not installed here; it cannot be downloaded")
        if not wanted.specifier.contains(one.version, prereleases=True):
            sys.exit(f"conda stand-in: {wanted}, which {by} asks for, is installed here as {one.version}")
        name = canonicalize_name(wanted.name)
        # Extras are rare and would need to be followed again for a distribution that is there already.
        extras = wanted.extras or {""}
        if name in found and not wanted.extras:
            continue
        found[name] = one
        for text in one.requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((need, name))
    return found


def create(file: Path, prefix: Path) -> None:
    """Make the environment of a file at a prefix."""
    wanted = yaml.safe_load(file.read_text())
    if wanted["channels"] != CHANNELS:
        sys.exit(f"conda stand-in: channels of {file} are {wanted['channels']}, not {CHANNELS}")
    pins = next(entry["pip"] for entry in wanted["dependencies"] if isinstance(entry, dict))
    packages = required(pins)
    venv.create(prefix, symlinks=True, with_pip=False)
    site = next(prefix.glob("lib/python*/site-packages"))
    for one in packages.values():
        for top in {entry.parts[0] for entry in one.files or [] if entry.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(one.locate_file(top))).resolve())
    # Not `sitecustomize`, of which Debian's Python has one of its own that comes first.
    (site / "witness.py").write_text(WITNESS)
    (site / "witness.pth").write_text("import witness\n")


def main(words: list[str]) -> None:
    if words == ["--version"]:
        print("conda 24.7.1 (stand-in of this project's tests)")
    elif words == ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(BASE), "platform": "linux-64"}))
    elif words == ["config", "--get", "channel_priority", "--json"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ["env", "create"] and words[4] == "--file" and words[6] == "--prefix":
        create(Path(words[5]), Path(words[7]))
    elif words[:2] == ["clean", "-y"]:
        print("nothing was downloaded")
    else:
        sys.exit(f"conda stand-in: knows no {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
