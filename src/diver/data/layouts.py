"""Reading raw files in the layouts in which datasets are published. Nothing is unpacked to disk, no pickle is read."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes8 = NDArray[np.uint8]
DEPTH = 2  # cifar-10-batches-bin/ and FashionMNIST/raw/ below the folder that the user names
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz", "tfjs-*.tgz")


class LayoutError(ValueError):
    """Raw files cannot be read; names the file and the fault."""


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels uint8 [N]."""

    images: Bytes8
    labels: Bytes8


def _binary_batch(content: bytes, name: str, channels: int, size: int, labels: int = 1) -> Split:
    record = labels + channels * size * size
    if not content or len(content) % record:
        raise LayoutError(f"{name}: {len(content)} bytes are no multiple of {record}, the size of a record")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return Split(rows[:, labels:].reshape(-1, channels, size, size), rows[:, labels - 1])


def _join(splits: list[Split]) -> Split:
    return Split(np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


def _read_binary(files: Mapping[str, bytes], channels: int, size: int) -> tuple[Split, Split]:
    """CIFAR's binary version: a record is the label's byte, then the pixels, channel by channel."""
    batches = {name: _binary_batch(content, name, channels, size) for name, content in files.items()}
    return _join([batches[f"data_batch_{i}.bin"] for i in range(1, 6)]), batches["test_batch.bin"]


def _read_binary_100(files: Mapping[str, bytes], channels: int, size: int) -> tuple[Split, Split]:
    """CIFAR-100's binary version: the coarse label's byte comes before the fine one, which is the class."""
    train, test = (_binary_batch(files[name], name, channels, size, labels=2) for name in ("train.bin", "test.bin"))
    return train, test


def _png(content: bytes, name: str, channels: int, size: int) -> Bytes8:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            pixels = np.asarray(opened.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise LayoutError(f"{name}: truncated or not a PNG ({error})") from error
    if pixels.shape[1] != size * size:
        raise LayoutError(f"{name}: rows of {pixels.shape[1]} pixels, expected {size * size}, an image a row")
    return np.ascontiguousarray(pixels.reshape(-1, size, size, channels).transpose(0, 3, 1, 2))


def _json_labels(content: bytes, name: str) -> Bytes8:
    try:
        labels = np.asarray(json.loads(content))
    except ValueError as error:
        raise LayoutError(f"{name}: truncated or not JSON ({error})") from error
    if labels.ndim != 1 or labels.dtype.kind != "i" or not ((labels >= 0) & (labels < 256)).all():
        raise LayoutError(f"{name}: not a list of small whole numbers")
    return labels.astype(np.uint8)


def _read_tfjs(files: Mapping[str, bytes], channels: int, size: int) -> tuple[Split, Split]:
    """Batches as pictures with an image a row, labels as JSON (the file names' spelling is the package's)."""
    train = np.concatenate([_png(files[n], n, channels, size) for n in (f"data_batch_{i}.png" for i in range(1, 6))])
    test = _png(files["test_batch.png"], "test_batch.png", channels, size)
    labels = {n: _json_labels(files[n], n) for n in ("train_lables.json", "test_lables.json")}
    return Split(train, labels["train_lables.json"]), Split(test, labels["test_lables.json"])


def _idx(content: bytes, name: str) -> Bytes8:
    """An array in the idx form: two zeros, the type (8 is uint8), the number of sizes, the sizes, the values."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise LayoutError(f"{name}: not an idx file of bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise LayoutError(f"{name}: truncated in its header")
    shape = [int(n) for n in np.frombuffer(content[4:start], ">u4")]
    if len(content) - start != (wanted := int(np.prod(shape, dtype=object))):
        raise LayoutError(f"{name}: {len(content) - start} bytes of values, expected {wanted} for sizes {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_images(content: bytes, name: str, channels: int, size: int) -> Bytes8:
    images = _idx(content, name)
    images = images[:, None] if images.ndim == 3 else images
    if images.shape[1:] != (channels, size, size):
        raise LayoutError(f"{name}: images of shape {list(images.shape[1:])}, expected {[channels, size, size]}")
    return images


def _read_idx(files: Mapping[str, bytes], channels: int, size: int) -> tuple[Split, Split]:
    """The form of MNIST and Fashion-MNIST, images [N, H, W] or [N, C, H, W]."""
    splits = []
    for prefix in ("train", "t10k"):
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        splits.append(Split(_idx_images(files[images], images, channels, size), _idx(files[labels], labels)))
    return splits[0], splits[1]


@dataclass(frozen=True)
class Layout:
    name: str
    files: tuple[str, ...]
    read: Callable[[Mapping[str, bytes], int, int], tuple[Split, Split]]


LAYOUTS = (
    Layout("CIFAR binary batches", (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"), _read_binary),
    Layout("CIFAR-100 binary files", ("train.bin", "test.bin"), _read_binary_100),
    Layout(
        "batches as PNG with JSON labels",
        (*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png", "train_lables.json", "test_lables.json"),
        _read_tfjs,
    ),
    Layout(
        "idx files, gzipped or not",
        tuple(f"{s}-{kind}-ubyte" for s in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        _read_idx,
    ),
)


def read_folder(folder: str | Path, channels: int, size: int) -> tuple[Split, Split]:
    """Training and test split of a folder that holds any layout of LAYOUTS, in files or in its archive.

    channels, size: of the raw images. Raises LayoutError: no layout is complete (it says what is missing of the
    nearest one), a file is damaged, or images and labels differ in number.
    """
    places = _find(Path(folder))
    for layout in LAYOUTS:
        if all(name in places for name in layout.files):
            train, test = layout.read(_load(places, layout.files), channels, size)
            for split, which in ((train, "training"), (test, "test")):
                if split.labels.shape != split.images.shape[:1]:
                    raise LayoutError(f"{folder}: {len(split.images)} {which} images, {split.labels.size} labels")
            return train, test
    raise LayoutError(f"{folder}: {_missing(places)}")


def _missing(places: Mapping[str, object]) -> str:
    nearest = max(LAYOUTS, key=lambda layout: sum(name in places for name in layout.files))
    lacks = [name for name in nearest.files if name not in places]
    if len(lacks) < len(nearest.files):
        return f"found part of the layout '{nearest.name}', but not {', '.join(lacks)}"
    return "no known layout; one of: " + "; ".join(f"{x.name} ({x.files[0]}, ...)" for x in LAYOUTS)


@dataclass(frozen=True)
class _Place:
    """Where a file's bytes are: on its own, gzipped, or a member of an archive."""

    path: Path
    member: str | None = None


def _find(folder: Path) -> dict[str, _Place]:
    wanted = {name for layout in LAYOUTS for name in layout.files}
    places: dict[str, _Place] = {}
    for path in _files_below(folder):
        name = path.name.removesuffix(".gz")
        if name in wanted:
            places.setdefault(name, _Place(path))
        elif any(fnmatch(path.name, pattern) for pattern in ARCHIVES):
            for member in _members(path):
                if Path(member).name in wanted:
                    places.setdefault(Path(member).name, _Place(path, member))
    return places


def _files_below(folder: Path) -> list[Path]:
    # Nearer files first, so that a stray copy deeper down cannot shadow them.
    return [p for depth in range(DEPTH + 1) for p in sorted(folder.glob("*/" * depth + "*")) if p.is_file()]


def _members(path: Path) -> list[str]:
    with archive_errors(path), tarfile.open(path) as archive:
        return [member.name for member in archive if member.isfile()]


def _load(places: Mapping[str, _Place], names: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in {places[name].path for name in names}:
        here = {p.member: name for name, p in places.items() if p.path == path and name in names}
        with archive_errors(path):
            if None in here:
                found[here[None]] = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                continue
            with tarfile.open(path) as archive:  # in the archive's order: seeking back would unpack it again
                for member in archive:
                    if member.name in here and (opened := archive.extractfile(member)):
                        found[here[member.name]] = opened.read()
    return found


class archive_errors:
    """Turns the many exceptions of damaged archives into LayoutError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, EOFError, zlib.error, tarfile.TarError)):
            raise LayoutError(f"{self.path}: truncated or damaged ({error})") from error
