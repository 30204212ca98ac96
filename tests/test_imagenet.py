"""Datasets of pictures: every place that ImageNet is kept in gives one content, every fault is told, work is kept."""

import csv
import gzip
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_data import Run, Server, alone, run, server  # noqa: F401 (fixtures)
from torchvision.transforms import functional as F

from diver.data import pictures, prepare, sources
from diver.data.layouts import LayoutError
from diver.data.pictures import FaultyPictures, decoded
from diver.data.prepare import prepare_pictures
from diver.data.prepared import ContentError, Prepared
from diver.data.spec import DatasetSpec, SpecError, load_dataset_spec
from diver.data.subsets import imagenet, subsets, wnids

PROJECT = Path(__file__).parents[1]
SPECS = PROJECT / "config" / "datasets"
# In the order of the labels, which is not that of the wnids.
CLASSES = ("n07753592", "n01440764", "n02123045")
TRAIN, TEST, SIZE = 5, 2, 8


def spec(**changes: Any) -> DatasetSpec:
    content: dict[str, Any] = {
        "name": "toy",
        "classes": CLASSES,
        "channels": 3,
        "size": SIZE,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "pictures": {"train": {"least": TRAIN, "most": TRAIN}, "test": {"least": TEST, "most": TEST}},
        "raw": "toynet",
        "sources": ({"kind": "folder"},),
    }
    return DatasetSpec.model_validate(content | changes)


def jpeg(seed: int, size: tuple[int, int] = (13, 10), mode: str = "RGB", form: str = "JPEG") -> bytes:
    draw = np.random.default_rng(seed)
    out = io.BytesIO()
    small = Image.fromarray(draw.integers(0, 256, (3, 4, 3), np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(out, form)
    return out.getvalue()


Files = dict[str, bytes]


def tree() -> Files:
    """`split/wnid/name` of a small ImageNet, of one class more than is asked for, in odd shapes and colours."""
    files = {}
    sizes = ((13, 10), (9, 20), (8, 8), (30, 8), (11, 17))
    for c, wnid in enumerate((*CLASSES, "n02084071")):
        for i in range(TRAIN):
            files[f"train/{wnid}/{wnid}_{i * 7}.JPEG"] = jpeg(100 * c + i, sizes[i])
    # The pictures' numbers say nothing of their classes.
    for number in range(1, 4 * TEST + 1):
        wnid = (*CLASSES, "n02084071")[number % 4]
        files[f"val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG"] = jpeg(1000 + number)
    # ImageNet's known oddities: grey, four colours, another format under the name.
    files[f"train/{CLASSES[0]}/{CLASSES[0]}_0.JPEG"] = jpeg(1, mode="L")
    files[f"train/{CLASSES[1]}/{CLASSES[1]}_0.JPEG"] = jpeg(2, mode="CMYK")
    files[f"train/{CLASSES[2]}/{CLASSES[2]}_0.JPEG"] = jpeg(3, form="PNG")
    return files


def expected(files: Files) -> dict[str, torch.Tensor]:
    """Images and labels from the bytes themselves, resized and cut by torchvision."""
    found: dict[str, torch.Tensor] = {}
    for split, name in (("train", "train"), ("val", "test")):
        chosen = [(c, key) for c, wnid in enumerate(CLASSES) for key in sorted(files) if f"{split}/{wnid}/" in key]
        images = []
        for _, key in chosen:
            picture = F.resize(Image.open(io.BytesIO(files[key])).convert("RGB"), [SIZE])
            images.append(F.pil_to_tensor(F.center_crop(picture, [SIZE])))
        found[f"{name}_images"] = torch.stack(images)
        found[f"{name}_labels"] = torch.tensor([c for c, _ in chosen])
    return found


def lay(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(files: Files, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def below(files: Files, folder: str) -> Files:
    return {name.removeprefix(f"{folder}/"): content for name, content in files.items() if name.startswith(folder)}


def class_tars(files: Files) -> Files:
    found = {wnid: below(files, f"train/{wnid}") for wnid in {name.split("/")[1] for name in files}}
    return {f"{wnid}.tar": tar(members) for wnid, members in found.items() if members}


def flat(files: Files) -> Files:
    return {Path(name).name: content for name, content in files.items() if name.startswith("val/")}


def labels(files: Files) -> dict[str, str]:
    return {Path(name).stem: name.split("/")[1] for name in sorted(files, key=lambda n: Path(n).name) if "val/" in name}


def solution(files: Files) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["ImageId", "PredictionString"])
    writer.writerows([[name, f"{wnid} 1 2 3 4 {wnid} 5 6 7 8"] for name, wnid in labels(files).items()])
    return out.getvalue().encode()


def val_txt(files: Files) -> bytes:
    """Caffe's: the index among ImageNet's sorted wnids, the wnid itself where it is none of them."""
    number = {wnid: str(i) for i, wnid in enumerate(imagenet())}
    return "".join(f"{n}.JPEG {number.get(wnid, wnid)}\n" for n, wnid in labels(files).items()).encode()


def devkit(files: Files) -> Files:
    """The official numbers, which are no labels, and the MATLAB file that says what they are."""
    wnid = [*CLASSES, "n02084071"]
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    meta = np.zeros((4, 1), kind)
    for i, name in enumerate(wnid):
        meta[i, 0] = (4 - i, name, 0)
    out = io.BytesIO()
    savemat(out, {"synsets": meta})
    numbers = "".join(f"{4 - wnid.index(name)}\n" for name in labels(files).values())
    folder = "ILSVRC2012_devkit_t12/data"
    truth = f"{folder}/ILSVRC2012_validation_ground_truth.txt"
    return {f"{folder}/meta.mat": out.getvalue(), truth: numbers.encode()}


def official(files: Files) -> Files:
    train = {"ILSVRC2012_img_train.tar": tar(class_tars(files))}
    return {**train, "ILSVRC2012_img_val.tar": tar(flat(files))}


def flat_val(files: Files) -> Files:
    train = {name: content for name, content in files.items() if name.startswith("train/")}
    return train | {f"val/{name}": content for name, content in flat(files).items()}


def tiny(files: Files) -> Files:
    """Folders of pictures within those of the classes, beside boxes; labels of the flat test pictures with theirs."""
    found = {}
    for name, content in files.items():
        split, wnid, picture = name.split("/")
        found[f"train/{wnid}/images/{picture}" if split == "train" else f"val/images/{picture}"] = content
        found[f"train/{wnid}/{wnid}_boxes.txt"] = b""
    listed = "".join(f"{name}.JPEG\t{wnid}\t0\t32\t44\t62\n" for name, wnid in labels(files).items())
    return {**found, "val/val_annotations.txt": listed.encode(), "wnids.txt": b"", "test/images/test_0.JPEG": jpeg(5)}


def inside(files: Files) -> Files:
    return {f"toy-128/{name}": content for name, content in files.items()}


PLACES: dict[str, Callable[[Files], Files]] = {
    "folders": lambda f: f,
    "deep folders": lambda f: {f"ILSVRC/Data/CLS-LOC/{name}": content for name, content in f.items()},
    "tars of classes": lambda f: (
        {f"train/{n}": c for n, c in class_tars(f).items()} | {k: f[k] for k in f if "val" in k}
    ),
    "archives, Kaggle's labels": lambda f: {**official(f), "LOC_val_solution.csv": solution(f)},
    "archives, val.txt": lambda f: {**official(f), "val.txt": val_txt(f)},
    "archives, devkit": lambda f: {**official(f), "ILSVRC2012_devkit_t12.tar.gz": tar(devkit(f), "w:gz")},
    "flat val, devkit's files": lambda f: {**flat_val(f), **devkit(f)},
    "Tiny ImageNet's": lambda f: {f"tiny-imagenet-200/{name}": content for name, content in tiny(f).items()},
    "tar of folders": lambda f: {"toy-128.tar": tar(inside(f))},
    "tgz of folders": lambda f: {"toy2-160.tgz": tar(inside(f), "w:gz")},
}


def prepared_from(root: Path, out: Path, of: DatasetSpec | None = None, **options: Any) -> Prepared:
    return prepare_pictures(of or spec(), root, out, tell=lambda _: None, **options)


# Places


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_content(tmp_path: Path, place: str) -> None:
    root = lay(tmp_path / "raw", PLACES[place](tree()))
    lay(root, {"README": b"", f"train/{CLASSES[0]}/notes.txt": b""} if place == "folders" else {})
    made = prepared_from(root, tmp_path / "out" / "toy.safetensors", workers=2 if place == "folders" else 1)
    for name, tensor in expected(tree()).items():
        assert torch.equal(getattr(made, name), tensor), name
    assert made.train_labels.tolist() == [0] * TRAIN + [1] * TRAIN + [2] * TRAIN and made.classes == CLASSES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["toy.safetensors"]


@pytest.mark.parametrize("place", ["tar of folders", "tgz of folders"])
def test_the_archive_itself_may_be_given(tmp_path: Path, run: Run, place: str) -> None:  # noqa: F811
    ((name, content),) = PLACES[place](tree()).items()
    root = lay(tmp_path / "raw", {name: content, "stray.tar": b"not an archive"})
    assert torch.equal(run(spec(), root / name).test_images, expected(tree())["test_images"])


def test_the_file_has_the_bytes_of_one_written_at_once(tmp_path: Path) -> None:
    made = prepared_from(lay(tmp_path / "raw", tree()), tmp_path / "a.safetensors")
    Prepared(
        **expected(tree()), dataset="toy", classes=CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3
    ).write(tmp_path / "b.safetensors")  # fmt: skip
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert Prepared.read(tmp_path / "a.safetensors", check=True).digest() == made.digest()


def test_whole_names_of_datasets_in_one_folder(
    tmp_path: Path,
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lay(tmp_path / "mine" / "toynet", tree())
    monkeypatch.setenv(sources.FOLDER_VARIABLE, str(tmp_path / "mine"))
    digest = run(spec()).digest()
    monkeypatch.delenv(sources.FOLDER_VARIABLE)
    assert "or link the folder to" in run_error(run, spec())
    run.raw.mkdir()
    (run.raw / sources.USER).symlink_to(tmp_path / "mine" / "toynet")
    assert run(spec()).digest() == digest


def run_error(run: Run, of: DatasetSpec, folder: Path | None = None) -> str:  # noqa: F811
    run.out.unlink(missing_ok=True)
    return run.error(of, folder)


def test_downloaded_archive_is_verified_and_kept(run: Run, server: Server) -> None:  # noqa: F811
    content = tar(inside(tree()), "w:gz")
    source = server.source(content, "toy2-160.tgz")
    for _ in range(2):
        assert torch.equal(run(spec(sources=(source,))).train_images, expected(tree())["train_images"])
    assert server.asked == ["toy2-160.tgz"]
    server.files["toy2-160.tgz"] = content[:-9]
    other = {"kind": "url", "files": [{**source["files"][0], "sha256": "0" * 64}]}
    assert "sha256" in run_error(run, spec(sources=(other,)))


@pytest.mark.parametrize(
    ("size", "short_side", "of"),
    [(8, 8, (13, 10)), (8, 9, (9, 20)), (8, 12, (7, 5)), (7, 10, (31, 11)), (8, 8, (8, 8))],
)
def test_decoding_is_torchvisions_resize_and_crop(size: int, short_side: int, of: tuple[int, int]) -> None:
    content = jpeg(5, of)
    picture = F.resize(Image.open(io.BytesIO(content)), [short_side])
    wanted = F.pil_to_tensor(F.center_crop(picture, [size]))
    assert np.array_equal(decoded(content, size, short_side), wanted.numpy())


# Faults


def faults(root: Path, tmp_path: Path, of: DatasetSpec | None = None) -> str:
    out = tmp_path / "out" / "toy.safetensors"
    with pytest.raises(FaultyPictures) as error:
        prepared_from(root, out, of)
    assert not out.exists() and "ILSVRC2012_img_train.tar" in error.value.remedy
    return str(error.value)


def test_one_message_lists_every_fault(tmp_path: Path, run: Run) -> None:  # noqa: F811
    files = tree()
    for name in [n for n in files if n.startswith(f"train/{CLASSES[1]}/")]:
        del files[name]
    first, *_, last = [n for n in sorted(files) if n.startswith(f"train/{CLASSES[0]}/")]
    files[first] = files[first][:-20]
    files[last] = b""
    del files[[n for n in files if n.startswith(f"train/{CLASSES[2]}/")][0]]
    del files[[n for n in files if n.startswith(f"val/{CLASSES[2]}/")][0]]
    files[f"val/{CLASSES[0]}/x.JPEG"] = b"no picture"
    root = lay(tmp_path / "raw", files)
    message = faults(root, tmp_path)
    assert "5 faults" in message
    for line in (
        f"training pictures: 1 of 3 classes are missing: {CLASSES[1]}",
        f"training pictures: 1 classes have fewer than {TRAIN}: {CLASSES[2]} has {TRAIN - 1}",
        f"test pictures: 1 classes have fewer than {TEST}: {CLASSES[2]} has {TEST - 1}",
        f"test pictures: 1 classes have more than {TEST}: {CLASSES[0]} has {TEST + 1}",
        "3 pictures cannot be read",
    ):
        assert line in message
    for name in (first, last, f"val/{CLASSES[0]}/x.JPEG"):
        assert str(root / name) in message
    assert "truncated" in message and "(empty)" in message and "cannot identify image file" in message
    assert "<_io" not in message
    shown = run_error(run, spec(), root)
    assert message.split("\n", 1)[1] in shown and "to do:    Unpack or copy again" in shown


def test_of_very_many_pictures_only_the_counts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tree()
    del files[[n for n in files if n.startswith(f"val/{CLASSES[2]}/")][0]]
    files[f"val/{CLASSES[0]}/ILSVRC2012_val_00000004.JPEG"] = b""
    monkeypatch.setattr(prepare, "LOOKED_AT", 10)
    assert "1 fault:" in faults(lay(tmp_path / "raw", files), tmp_path)


def test_totals_and_splits(tmp_path: Path) -> None:
    root = lay(tmp_path / "raw", tree())
    of = spec(pictures={"train": {"total": 16}, "test": {"total": 6}})
    assert "training pictures: 15 in all, 16 are expected" in faults(root, tmp_path, of)
    shutil.rmtree(root / "val")
    assert "1 fault:\n      test pictures: none of the 3 classes (val/) was found" in faults(root, tmp_path)
    shutil.rmtree(root / "train")
    with pytest.raises(LayoutError, match=f"no pictures of any of the 3 classes, such as train/{CLASSES[0]}/; known"):
        prepared_from(root, tmp_path / "out.safetensors")


def test_flat_validation_without_labels(tmp_path: Path) -> None:
    root = lay(tmp_path / "raw", flat_val(tree()))
    message = faults(root, tmp_path)
    assert "1 fault:" in message and "8 pictures without class folders, and no list of their labels" in message
    assert "LOC_val_solution.csv, val.txt" in message
    listed = val_txt(tree()).decode().splitlines(keepends=True)
    lay(root, {"val.txt": "".join(line for line in listed if "00000003" not in line).encode()})
    message = faults(root, tmp_path)
    assert "1 pictures have no label" in message and "first ILSVRC2012_val_00000003.JPEG" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("val.txt", b"ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 40000\n"),
        ("val.txt", b"\xff\xfe"),
        ("LOC_val_solution.csv", b"a,b\n1,2\n"),
        ("ILSVRC2012_devkit_t12.tar.gz", tar({"meta.mat": b"", "x": b""}, "w:gz")),
        ("ILSVRC2012_devkit_t12.tar.gz", gzip.compress(b"x", mtime=0)[:-4]),
    ],
)
def test_bad_lists_of_labels(tmp_path: Path, name: str, content: bytes) -> None:
    root = lay(tmp_path / "raw", {**flat_val(tree()), name: content})
    with pytest.raises(LayoutError, match=f"{re.escape(name)}: (not the list of labels|truncated or damaged)"):
        prepared_from(root, tmp_path / "out.safetensors")


@pytest.mark.parametrize("place", ["archives, val.txt", "tar of folders", "tgz of folders"])
def test_damaged_archives(tmp_path: Path, place: str) -> None:
    files = PLACES[place](tree())
    name = next(iter(files))
    files[name] = files[name][: len(files[name]) // 2 + 1]
    with pytest.raises(LayoutError, match=f"{re.escape(name)}: truncated or damaged"):
        prepared_from(lay(tmp_path / "raw", files), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_place_small_disk_and_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:  # noqa: F811
    assert "nowhere is not a folder or an archive" in run.error(spec(), Path("nowhere"))
    root, out = lay(tmp_path / "raw", tree()), tmp_path / "toy.safetensors"
    with pytest.raises(ContentError, match="prepared content has digest .*, expected 000"):
        prepared_from(root, out, spec(digest="0" * 64))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ContentError, match="the prepared file takes 0.0 GB, 0.0 GB are free; make room"):
        prepared_from(root, out)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


# Long runs


class Lines(list[str]):
    def done(self) -> tuple[int, int]:
        """Pictures that were made, and that were there from an earlier run."""
        made = next(int(m[1]) for line in self if (m := re.match(r"  (\d+) pictures to", line)))
        kept = next((int(m[1]) for line in self if (m := re.search(r"; (\d+) pictures are there", line))), 0)
        return made, kept


KILLED = """
import sys, time
from pathlib import Path
from diver.data import pictures
from diver.data.prepare import prepare_pictures
from diver.data.spec import DatasetSpec
pictures.CHUNK = 3
whole = pictures.decoded
def slow(*given):
    time.sleep(0.05)
    return whole(*given)
pictures.decoded = slow
prepare_pictures(DatasetSpec.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3], workers=2)
"""


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = lay(tmp_path / "raw", PLACES["tgz of folders"](tree())), tmp_path / "out" / "toy.safetensors"
    journal = out.with_name(".toy.safetensors.journal")
    killed = subprocess.Popen([sys.executable, "-c", KILLED, spec().model_dump_json(), root, out])
    deadline = time.monotonic() + 60
    while not journal.exists() or len(journal.read_text().split()) < 2:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not out.exists() and len(journal.read_text().split()) < 7
    # Workers end with their parent; what they were writing is not in the journal.
    time.sleep(0.3)
    monkeypatch.setattr(pictures, "CHUNK", 3)
    told = Lines()
    made = prepare_pictures(spec(), root, out, tell=told.append)
    new, kept = told.done()
    assert kept >= 6 and new + kept == 21
    for name, tensor in expected(tree()).items():
        assert torch.equal(getattr(made, name), tensor)
    assert os.listdir(out.parent) == ["toy.safetensors"]


def test_a_row_that_is_cut_off_by_a_full_disk_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out, whole = lay(tmp_path / "raw", tree()), tmp_path / "toy.safetensors", os.pwrite
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, "pwrite", lambda file, content, at: whole(file, content[:5], at))
        prepared_from(root, out)
    assert prepared_from(root, out).digest() == prepared_from(root, tmp_path / "b.safetensors").digest()


def test_two_writers_of_one_file_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 3)
    root, out, told = lay(tmp_path / "raw", tree()), tmp_path / "out" / "toy.safetensors", Lines()
    began, whole = threading.Event(), pictures.decoded

    def slow(*given: Any) -> Any:
        began.set()
        time.sleep(0.02)
        return whole(*given)

    monkeypatch.setattr(pictures, "decoded", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare_pictures, spec(), root, out, tell=told.append)
        began.wait(10)
        second = pool.submit(prepare_pictures, spec(), root, out, tell=told.append)
        assert first.result().digest() == second.result().digest() == prepared_from(root, tmp_path / "b").digest()
    assert os.listdir(out.parent) == ["toy.safetensors"] and any("waiting for another" in line for line in told)


def test_only_what_was_mended_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 3)
    files, out = tree(), tmp_path / "toy.safetensors"
    name = [n for n in sorted(files) if CLASSES[2] in n][-1]
    root = lay(tmp_path / "raw", {**files, name: files[name][:-60]})
    with pytest.raises(FaultyPictures, match="1 picture cannot be read"):
        prepared_from(root, out)
    lay(root, {name: files[name]})
    told = Lines()
    first = prepare_pictures(spec(), root, out, tell=told.append)
    assert told.done() == (3, 18)
    # Once it is written, nothing is kept; and a journal without its rows is not believed.
    digest = first.digest()
    (tmp_path / ".toy.safetensors.journal").write_text("0" * 64 + "\n")
    told.clear()
    assert prepare_pictures(spec(), root, out, tell=told.append).digest() == digest and told.done() == (21, 0)


def test_other_pictures_do_not_take_the_rows_of_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 3)
    files, out = tree(), tmp_path / "toy.safetensors"
    root = lay(tmp_path / "raw", files)

    def stop(_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pictures, "tensors_digest", stop)
        prepared_from(root, out)
    name = f"train/{CLASSES[0]}/{CLASSES[0]}_7.JPEG"
    lay(root, {name: jpeg(77, (40, 40))})
    told = Lines()
    made = prepare_pictures(spec(), root, out, tell=told.append)
    assert told.done() == (3, 18)
    assert torch.equal(made.train_images, expected({**files, name: jpeg(77, (40, 40))})["train_images"])


@pytest.fixture
def anonymous() -> Iterator[Callable[[], float]]:
    """Peak so far of this process's own memory in MB, without pages of mapped files."""
    status, peak, stopped = Path("/proc/self/status"), [0.0], threading.Event()
    if not status.exists() or "RssAnon" not in status.read_text():
        pytest.skip("the system does not say how much memory is the process's own")

    def now() -> float:
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        assert found
        return int(found[1]) / 1000

    def watch() -> None:
        while not stopped.wait(0.005):
            peak[0] = max(peak[0], now())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    first = now()
    yield lambda: max(peak[0], now()) - first
    stopped.set()
    thread.join()


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, anonymous: Callable[[], float]) -> None:
    content, side, count = jpeg(0, (224, 224)), 224, 600
    files = {f"train/{wnid}/{i}.JPEG": content for wnid in CLASSES for i in range(count // 3)}
    files |= {f"val/{wnid}/0.JPEG": content for wnid in CLASSES}
    of, out = spec(size=side, pictures={}), tmp_path / "toy.safetensors"
    made = prepared_from(lay(tmp_path / "raw", files), out, of)
    assert out.stat().st_size > count * 3 * side * side > 90_000_000
    assert made.train_images.shape == (count, 3, side, side)
    assert anonymous() < 40
    # Reading maps the file: what is taken out of it is what takes memory.
    read = Prepared.read(out)
    chosen = read.standardised(read.train_images[torch.tensor([5, 400])])
    assert torch.equal(chosen[0], chosen[1]) and anonymous() < 40


def test_progress_counts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CHUNK", 3)
    told: list[tuple[int, int, str]] = []
    show = lambda *given: told.append(given)  # noqa: E731
    prepared_from(lay(tmp_path / "raw", tree()), tmp_path / "a.safetensors", progress=show)
    assert told[0] == (1, 21, "pictures,") and told[-1] == (21, 21, "pictures,")


def test_held_out_pictures(tmp_path: Path) -> None:
    root = lay(tmp_path / "raw", tree())
    whole = prepared_from(root, tmp_path / "a.safetensors")
    made = prepared_from(root, tmp_path / "b.safetensors", spec(held_out=2))
    assert made.digest() == prepare.hold_out(whole, 2).digest() and len(made.test_labels) == 6


# Specifications


def test_shipped_datasets_of_pictures() -> None:
    named = {name: load_dataset_spec(SPECS / f"{name}.yaml") for name in (*subsets(), "imagenet1k")}
    assert {name: one.classes for name, one in named.items()} == {name: wnids(name) for name in named}
    assert {one.raw for one in named.values()} == {"imagenet"}
    assert {one.mean for one in named.values()} == {(0.485, 0.456, 0.406)}
    assert {name: one.size for name, one in named.items() if one.size != 128} == {"imagenet1k": 224}
    assert named["imagefruit"].classes[0] == "n07753275" != min(named["imagefruit"].classes)
    assert [named[n].label for n in ("imagenette", "imagefruit", "imagenet-a", "imagenet-idc", "imagenet1k")] == [
        "ImageNette", "ImageFruit", "ImageNet-A", "ImageNet-IDC", "ImageNet-1K"
    ]  # fmt: skip
    whole = named["imagenet1k"].pictures
    assert whole and (whole.train.total, whole.train.least, whole.train.most) == (1281167, 732, 1300)
    for name, of in (("imagenette-fastai", "imagenette"), ("imagewoof-fastai", "imagewoof")):
        one = load_dataset_spec(SPECS / f"{name}.yaml")
        assert one.classes == subsets()[of] and "fastai" in one.label and one.raw == name


def test_imagenet_is_timms() -> None:
    from timm.data import ImageNetInfo

    assert list(imagenet()) == ImageNetInfo().label_names()
    assert all(set(found) <= set(imagenet()) for found in subsets().values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: imagenette\nsubset: imagefruits", "unknown subset 'imagefruits', nearest is 'imagefruit'"),
        ("extends: nothing", "nothing.yaml"),
        ("extends: toy", "toy extend each other"),
        ("extends: imagenette\nclasses: [a, b]", "classes are not those of subset 'imagenette'"),
        ("extends: imagenette\npictures: {short_side: 64}", "short_side must not be below size = 128"),
        ("extends: imagenette\nchannels: 1\nmean: [0]\nstd: [1]", "pictures have 3 channels"),
        ("extends: imagenette\npictures: {shortside: 200}", "unknown key, nearest is 'short_side'"),
        ("extends: imagenette\npictures: {train: {last: 200}}", "unknown key, nearest is 'least'"),
        ("[1]", "valid dictionary"),
    ],
)
def test_bad_specifications(tmp_path: Path, text: str, message: str) -> None:
    shutil.copy(SPECS / "imagenette.yaml", tmp_path)
    (tmp_path / "toy.yaml").write_text(text)
    with pytest.raises(SpecError) as error:
        load_dataset_spec(tmp_path / "toy.yaml")
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_extending_takes_all_but_what_is_the_bases_own(tmp_path: Path) -> None:
    base = spec(name="base", label="Base", digest="0" * 64, pictures=None, images=(20, 6))
    (tmp_path / "base.yaml").write_text(base.model_dump_json())
    (tmp_path / "part.yaml").write_text("extends: base\nsize: 4\n")
    part = load_dataset_spec(tmp_path / "part.yaml")
    assert part == spec(name="part", size=4, pictures=None)
    assert (part.label, part.digest, part.images) == ("", None, None)
