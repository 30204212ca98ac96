"""Labels of ImageNet's validation pictures, which its official archive, and Tiny ImageNet's, hold without folders."""

import csv
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diver.data.layouts import LayoutError, archive_errors
from diver.data.subsets import imagenet

SOLUTION, LIST, ANNOTATIONS = "LOC_val_solution.csv", "val.txt", "val_annotations.txt"
IDS, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


@dataclass(frozen=True)
class Truth:
    """Wnid by picture (its name without suffix), and the file that says so."""

    labels: dict[str, str]
    path: Path


def read_truth(files: Sequence[Path]) -> Truth | None:
    """The first list of labels among the files; None if there is none. Raises LayoutError if it is malformed."""
    named = {path.name: path for path in reversed(files)}
    try:
        if path := named.get(SOLUTION):
            return Truth(_solution(path), path)
        if path := named.get(LIST):
            return Truth(_list(path), path)
        if path := named.get(ANNOTATIONS):
            return Truth(_annotations(path), path)
        if (path := named.get(IDS)) and META in named:
            return Truth(_devkit(path.read_text(), named[META].read_bytes()), path)
        if path := next((p for p in files if "devkit" in p.name and p.suffix in (".gz", ".tgz", ".tar")), None):
            return Truth(_devkit(*_unpacked(path)), path)
    except (ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise LayoutError(f"{path}: not the list of labels that its name says ({error!r})") from error
    return None


def _solution(path: Path) -> dict[str, str]:
    """Kaggle's form: a picture, then its wnid and box, and perhaps further boxes."""
    with path.open(newline="") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


def _list(path: Path) -> dict[str, str]:
    """A picture and its label on each line: the index among the sorted wnids, or the wnid."""
    found = {}
    for line in path.read_text().splitlines():
        if line.strip():
            name, label = line.split()
            found[Path(name).stem] = label if label.startswith("n") else imagenet()[int(label)]
    return found


def _annotations(path: Path) -> dict[str, str]:
    """Tiny ImageNet's: a picture, its wnid and its box on each line."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return {Path(line[0]).stem: line[1] for line in lines}


def _devkit(numbers: str, meta: bytes) -> dict[str, str]:
    """The official form: a number per picture, whose wnid stands in a MATLAB file."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return {f"ILSVRC2012_val_{i:08d}": wnid[int(number)] for i, number in enumerate(numbers.split(), 1)}


def _unpacked(path: Path) -> tuple[str, bytes]:
    found: dict[str, bytes] = {}
    with archive_errors(path), tarfile.open(path) as archive:
        for member in archive:
            name = Path(member.name).name
            if name in (IDS, META) and (opened := archive.extractfile(member)):
                found[name] = opened.read()
    return found[IDS].decode(), found[META]
