"""One file of tensors with a header of metadata, as safetensors, written atomically and with deterministic bytes."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# safetensors writes several metadata keys in an order that changes between runs, so there is exactly one.
KEY = "diver"
_NAMES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


class TensorFileError(ValueError):
    """A file cannot be read; one line without the file's name, which the caller adds."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no free choices. Raises ValueError or TypeError for NaN and for what is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def file_checksum(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor], metadata: Any = None) -> str:
    """SHA-256 in hexadecimal over names, dtypes, shapes and values (in the order of the names) and the metadata."""
    digest = hashlib.sha256(canonical_json(metadata).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the tensors and the metadata; the path holds either the old content or all of the new one.

    Raises OSError naming the path when it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        part.touch()
        mode = part.stat().st_mode
        # From the tensors' own memory; the library makes files that only their owner reads.
        save_file(plain, part, {KEY: canonical_json(metadata)})
        part.chmod(mode)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Layout:
    """Where a file's tensors lie: `head` are its first bytes, `offsets` the place of each tensor, `size` its length."""

    head: bytes
    offsets: dict[str, int]
    size: int


def layout(shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: dict[str, Any]) -> Layout:
    """Layout of the file that `write_tensors` makes of tensors of these dtypes and shapes, byte for byte.

    With it a file that does not fit memory is written piece by piece.
    """
    # Wider types come first, then the order of names: as the library sorts them.
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {KEY: canonical_json(metadata)}}
    places, at = {}, 0
    for name in order:
        dtype, shape = shapes[name]
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        places[name], at = at, at + size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return Layout(head, {name: len(head) + place for name, place in places.items()}, len(head) + at)


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file, open for reading parts of its tensors (`get_tensor`, `get_slice`), and its metadata.

    Raises TensorFileError when the file is missing, truncated, of another format or without metadata.
    Nothing in the file is executed: the format has no code.
    """
    if not Path(path).is_file():
        raise TensorFileError("no such file")
    with ExitStack() as open_files:
        # Around the reading alone: what a caller refuses while the file is open is no fault of the file.
        with readable():
            file = open_files.enter_context(safe_open(str(path), framework="pt"))
            header = file.metadata() or {}
        if KEY not in header:
            raise TensorFileError(f"the header has no metadata under {KEY!r}")
        try:
            metadata = json.loads(header[KEY])
        except ValueError as error:
            raise TensorFileError(f"the metadata under {KEY!r} is not JSON ({error})") from error
        if not isinstance(metadata, dict):
            raise TensorFileError(f"the metadata under {KEY!r} is not a JSON object")
        yield file, metadata


@contextmanager
def readable() -> Iterator[None]:
    """Around reading from an open file: what goes wrong there is a fault of the file, a TensorFileError."""
    try:
        yield
    except TensorFileError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TensorFileError(f"truncated, or not a safetensors file ({reason})") from error


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file of `write_tensors`. Raises TensorFileError as `opened`."""
    with opened(path) as (file, metadata), readable():
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (it is no mapping)
