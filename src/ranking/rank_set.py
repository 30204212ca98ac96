"""Judge a distilled set with DD-Ranking 0.2.0, an evaluator that this project has no part in.

Run by the interpreter of the environment `envs/ddranking.yaml` (`make rank` makes it) on a folder of
`diver export --form ddranking`. DD-Ranking's LabelRobustScoreHard does the work: it trains its own network on the set
and, with the best of five learning rates, on random real images of the same number, tests both on real images, and
repeats this. Full data minus set is HLR (hard label recovery, lower is better), set minus random is IOR (improvement
over random, higher is better). DD-Ranking is installed as published. At run time its `save_results`, which crashes
(the score is listed twice), hands the numbers over instead, and its `set_seed`, which reads the clock, is given seeds.

DD-Ranking puts percentages where its formula means fractions, so the score is computed here:
    alpha = w IOR - (1 - w) HLR,   LRS = (exp(alpha) - exp(-1)) / (exp(1) - exp(-1)),   w = 0.5
Deviations are sample standard deviations (n - 1). The same command on the same machine writes the same bytes.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import itertools
import json
import math
import pickle
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

# DD-Ranking tests after each tenth epoch and keeps the best; its demonstration's augmentation, under the keys it reads.
INTERVAL = 10
DSA = {
    "flip": 0.5,
    "rotate": 15.0,
    "saturation": 2.0,
    "brightness": 1.0,
    "contrast": 0.5,
    "scale": 1.2,
    "crop": 0.125,
    "cutout": 0.5,
}
BATCHES = "cifar-10-batches-py"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class RankError(ValueError):
    """Something that the user can mend; one line."""


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """LRS of HLR and IOR as fractions of one; 0 is the worst, 1 the best that can be."""
    alpha = weight * ior - (1 - weight) * hlr
    return (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (none for a single value) with the values themselves."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def scores(hlr_pct: Sequence[float], ior_pct: Sequence[float], full_pct: float) -> dict[str, Any]:
    """What DD-Ranking found, evaluation by evaluation: the three scores as fractions, the accuracies in per cent."""
    hlr, ior = ([round(v / 100, 8) for v in values] for values in (hlr_pct, ior_pct))
    of_set = [round(full_pct - v, 6) for v in hlr_pct]
    return {
        "HLR": summary(hlr),
        "IOR": summary(ior),
        "LRS": summary([label_robust_score(h, i) for h, i in zip(hlr, ior, strict=True)]),
        "accuracy_set_pct": summary(of_set),
        "accuracy_random_pct": summary([round(s - i, 6) for s, i in zip(of_set, ior_pct, strict=True)]),
    }


def pooled_difference(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """(mean of ours - mean of theirs) / pooled sample standard deviation; None where that is not defined."""
    freedom = len(ours) + len(theirs) - 2
    if min(len(ours), len(theirs)) < 1 or freedom < 1:
        return None
    squares = sum(sum((v - statistics.fmean(values)) ** 2 for v in values) for values in (ours, theirs))
    pooled = math.sqrt(squares / freedom)
    return (statistics.fmean(ours) - statistics.fmean(theirs)) / pooled if pooled else None


def near_zero(values: Sequence[float]) -> dict[str, Any] | None:
    """95 % t-interval of the mean, and whether it holds zero; None for a single value."""
    if len(values) < 2:
        return None
    from scipy import stats

    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "half_width_95": half, "holds_zero": abs(mean) <= half}


def our_accuracies(table: Path, digest: str, where: dict[str, str], theirs: Sequence[float]) -> list[dict[str, Any]]:
    """Our students beside the judge's: an entry per architecture of the rows that match.

    Rows are those of the set's digest and on images at the test images' scale, if the table has both, and of `where`.
    """
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RankError(f"--ours {table}: no table of students ({error}); give one of diver evaluate --csv") from error
    if not rows:
        raise RankError(f"--ours {table}: has no students; give a table of diver evaluate --csv")
    columns = rows[0].keys()
    # `diver evaluate` has one scale and so no column of it.
    fixed = {key: value for key, value in {"scale": "matched", "set_digest": digest}.items() if key in columns}
    wanted = {**fixed, **where}
    if missing := sorted({*wanted, "architecture", "seed", "accuracy_last", "accuracy_best"} - set(columns)):
        raise RankError(f"{table}: no column {missing[0]!r}; columns: {', '.join(columns)}")
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not chosen:
        asked = " ".join(f"{key}={value}" for key, value in wanted.items())
        raise RankError(
            f"{table}: no students with {asked}; evaluate this set, or choose others with --where KEY=VALUE"
        )
    found = []
    for name in dict.fromkeys(row["architecture"] for row in chosen):
        mine = sorted((row for row in chosen if row["architecture"] == name), key=lambda row: int(row["seed"]))
        last, best = ([float(row[f"accuracy_{kind}"]) for row in mine] for kind in ("last", "best"))
        found.append(
            {
                "architecture": name,
                # DD-Ranking's students see ordinary images.
                "white_images": any(row.get("white") == "True" for row in mine),
                "accuracy_last_pct": summary(last),
                "accuracy_best_pct": summary(best),
                "best_minus_judge_in_pooled_std": pooled_difference(best, theirs),
            }
        )
    return found


def read_export(folder: Path) -> tuple[Tensor, Tensor, float | None, dict[str, Any]]:
    """Images, labels, the recorded rate and the description of a folder of `diver export --form ddranking`."""
    missing = [name for name in ("meta.json", "images.pt", "labels.pt") if not (folder / name).is_file()]
    if missing:
        raise RankError(f"{folder}: no {missing[0]}; write it with: diver export SET --form ddranking --out {folder}")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images, labels = (torch.load(folder / name, weights_only=True) for name in ("images.pt", "labels.pt"))
        expected = torch.arange(len(meta["classes"])).repeat_interleave(meta["ipc"])
        same = meta["form"] == "ddranking" and list(images.shape) == meta["shape"] and torch.equal(labels, expected)
        whole = {"dataset", "digest", "labels", "lr", "steps"} <= meta.keys()
    except Exception:  # damaged files raise nearly anything, and all of it means the same to the caller
        same = whole = False
    if not (same and whole):
        raise RankError(f"{folder}: damaged, or not the tensors of meta.json; export the set to a new folder")
    return images, labels, meta["lr"], meta


def check_official(root: Path) -> Path:
    """The folder that holds the official CIFAR-10 batches, so that nobody tries to download them."""
    from torchvision.datasets import CIFAR10 as Dataset

    root = root.parent if root.name == BATCHES else root
    for name, md5 in [*Dataset.train_list, *Dataset.test_list, [Dataset.meta["filename"], Dataset.meta["md5"]]]:
        path = root / BATCHES / name
        if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != md5:
            fault = "is not the official file" if path.is_file() else "is missing"
            raise RankError(f"--real {root}: {BATCHES}/{name} {fault}; give the official folder, or --prepared instead")
    return root


def write_batches(prepared: Path, root: Path, test_images: int | None) -> tuple[dict[str, str], str]:
    """Write a prepared CIFAR-10 in the layout of the official pickled batches under `root`.

    `test_images`: only the first so many, class by class in equal shares. The same pixels, labels and order; not the
    same bytes, for the official pickles also hold names of files. Returns file name -> md5, and the data's digest.
    """
    if not prepared.is_file():
        raise RankError(f"--prepared {prepared}: no such file; make it with: snakemake --cores 1 {prepared}")
    with safe_open(str(prepared), framework="np") as opened:
        header = json.loads((opened.metadata() or {}).get("diver", "{}"))
        if header.get("classes") != CIFAR10:
            raise RankError(
                f"--prepared {prepared}: not CIFAR-10; give other data as DD-Ranking takes them, with --real"
            )
        train, test = ((opened.get_tensor(f"{s}_images"), opened.get_tensor(f"{s}_labels")) for s in ("train", "test"))
    if test_images:
        per_class = test_images // len(CIFAR10)
        rows = sorted(int(i) for c in range(len(CIFAR10)) for i in (test[1] == c).nonzero()[0][:per_class])
        test = test[0][rows], test[1][rows]
    files: dict[str, Any] = {"test_batch": test, "batches.meta": {"label_names": CIFAR10}}
    step = -(-len(train[1]) // 5)
    for i in range(5):
        files[f"data_batch_{i + 1}"] = tuple(part[i * step : (i + 1) * step] for part in train)
    (root / BATCHES).mkdir(parents=True)
    sums = {}
    for name, content in files.items():
        if name != "batches.meta":
            images, labels = content
            content = {"data": images.reshape(len(images), -1), "labels": [int(v) for v in labels]}
        data = pickle.dumps(content, protocol=2)
        (root / BATCHES / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    return sums, str(header["digest"])


def trust_batches(sums: dict[str, str]) -> None:
    """Let torchvision expect the batches that were written, for this process."""
    from torchvision.datasets import CIFAR10 as Dataset

    Dataset.train_list = [[name, sums[name]] for name in sorted(sums) if name.startswith("data_batch")]
    Dataset.test_list = [["test_batch", sums["test_batch"]]]
    Dataset.meta = {**Dataset.meta, "md5": sums["batches.meta"]}


def draw_control(evaluator: Any, ipc: int, seed: int) -> Tensor:
    """Random real images as DD-Ranking itself loads and normalises them: float32 [C * ipc, 3, H, W], class-major."""
    generator = random.Random(seed)
    drawn = [i for members in evaluator.class_to_indices for i in generator.sample(members, ipc)]
    return torch.stack([evaluator.dst_train[i][0] for i in drawn])


def train_reference(evaluator: Any, epochs: int, images: int | None, seed: int, workers: int) -> float:
    """Accuracy in per cent of DD-Ranking's network on the full real data, or on `images` random ones of them.

    DD-Ranking's own network, loop, optimiser and settings for CIFAR10-ConvNet-3 (SGD 0.01, momentum 0.9, decay 5e-4,
    batch 512, no augmentation, rate / 10 at half time), for `epochs`. The best of the tested epochs, as it does.
    """
    from ddranking.utils import build_model, get_lr_scheduler, get_optimizer, train_one_epoch, validate
    from ddranking.utils.misc import set_seed
    from ddranking.utils.train_and_eval import REAL_DATA_TRAINING_CONFIG

    name = f"{evaluator.dataset}-{evaluator.model_name}"
    settings = REAL_DATA_TRAINING_CONFIG.get(name, REAL_DATA_TRAINING_CONFIG["CIFAR10-ConvNet-3"])
    set_seed(seed)
    data = evaluator.dst_train
    if images:
        data = torch.utils.data.Subset(data, torch.randperm(len(data))[:images].tolist())
    loader: Any = torch.utils.data.DataLoader(data, settings["batch_size"], shuffle=True, num_workers=workers)
    device = evaluator.device
    model = build_model(evaluator.model_name, evaluator.num_classes, evaluator.im_size, device=device)
    optimizer = get_optimizer(
        settings["optimizer"], model, settings["lr"], settings["weight_decay"], settings["momentum"]
    )
    scheduler = get_lr_scheduler(settings["lr_scheduler"], optimizer, epochs, max(1, epochs // 2))
    best = 0.0
    for epoch in range(epochs):
        train_one_epoch(
            epoch=epoch,
            stu_model=model,
            loader=loader,
            loss_fn=torch.nn.CrossEntropyLoss(),
            optimizer=optimizer,
            lr_scheduler=scheduler,
            class_map=evaluator.class_map,
            device=device,
        )
        if (epoch + 1) % INTERVAL == 0 or epoch + 1 == epochs:
            best = max(best, validate(model, evaluator.test_loader_real, device=device, class_map=evaluator.class_map))
    return float(best)


def cached(path: Path, settings: dict[str, Any], measure: Callable[[], float]) -> float:
    """The value measured earlier under exactly these settings, else a new one, which is kept."""
    known = json.loads(path.read_text()) if path.is_file() else []
    for entry in known:
        if entry["settings"] == settings:
            return float(entry["accuracy_pct"])
    value = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*known, {"settings": settings, "accuracy_pct": value}], indent=2) + "\n")
    return value


@contextlib.contextmanager
def patched(found: dict[str, list[float]], seed: int, say: Callable[[str], None], runs: int) -> Iterator[None]:
    """The two patches: `save_results` gives its numbers to `found`, `set_seed` takes seed, seed + 1, ..."""
    import ddranking.metrics.hard_label as module
    from ddranking.utils.misc import set_seed

    numbers = itertools.count()

    def seeded() -> None:
        number = next(numbers)
        say(f"evaluation {number + 1} of {runs}")
        set_seed(seed + number)

    def keep(results: dict[str, list[float]], path: str) -> None:
        for name in ("hard_label_recovery", "improvement_over_random"):
            found.setdefault(name, []).extend(float(v) for v in results[name])

    before = module.save_results, module.set_seed
    module.save_results, module.set_seed = keep, seeded
    try:
        yield
    finally:
        module.save_results, module.set_seed = before


def judge(
    evaluator: Any,
    draws: Sequence[tuple[Tensor, int]],
    labels: Tensor,
    rate: float | None,
    seed: int,
    full: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Scores of images, each with its number of evaluations, by DD-Ranking's own `compute_metrics`."""
    found: dict[str, list[float]] = {}
    with patched(found, seed, say, sum(count for _, count in draws)):
        for images, count in draws:
            evaluator.num_eval = count
            evaluator.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=rate)
    return scores(found["hard_label_recovery"], found["improvement_over_random"], full)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("ddranking", "numpy", "torch", "torchvision")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    first = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(
        description=first,
        epilog="example: rank_set.py results/ranking/dm --prepared data/prepared/cifar10.safetensors --epochs 50 "
        "--evaluations 3 --reference-epochs 20 --control",
    )
    add = parser.add_argument
    add("exported", type=Path, help="folder of `diver export --form ddranking`")
    real = parser.add_mutually_exclusive_group(required=True)
    real.add_argument("--prepared", type=Path, help="the prepared CIFAR-10, as `snakemake data` makes it")
    real.add_argument(
        "--real", type=Path, help=f"real data as DD-Ranking takes them; CIFAR-10: the folder of {BATCHES}"
    )
    add("--out", type=Path, help="JSON to write (default: ddranking.json in the exported folder)")
    add("--model", default="ConvNet-3", help="DD-Ranking's name of the network (default: %(default)s)")
    add("--epochs", type=int, default=300, help="of each training; tested each tenth, the best counts (%(default)s)")
    add("--evaluations", type=int, default=5, help="repetitions (default: %(default)s)")
    add("--augmentation", choices=["dsa", "none"], default="dsa", help="of the images in training (%(default)s)")
    add("--seed", type=int, default=0, help="evaluation i has seed + i (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--threads", type=int, help="CPU threads (default: torch's choice); numbers depend on it in the last digits")
    add("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    add("--test-images", type=int, help="test on so many, in equal shares of the classes (default: all)")
    add("--reference-epochs", type=int, default=200, help="of the training on full data (default: %(default)s)")
    add("--reference-images", type=int, help="random training images of it (default: all)")
    add("--reference-cache", type=Path, default=Path("data/ranking/reference.json"), help="default: %(default)s")
    add(
        "--control", action="store_true", help="also judge random real images, drawn anew each time: IOR must be near 0"
    )
    add("--ours", type=Path, help="our table of students (results.csv), to be shown beside")
    add("--where", action="append", default=[], metavar="KEY=VALUE", help="column and value of --ours; repeatable")
    given = parser.parse_args(arguments)
    if given.epochs < INTERVAL:
        parser.error(f"--epochs {given.epochs}: DD-Ranking tests each tenth epoch; use {INTERVAL} or more")
    for name in ("evaluations", "reference_epochs", "reference_images", "test_images", "threads"):
        if (value := getattr(given, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if given.test_images and not given.prepared:
        parser.error("--test-images: only with --prepared")
    if given.test_images and given.test_images % len(CIFAR10):
        parser.error(f"--test-images {given.test_images}: use a multiple of {len(CIFAR10)}")
    if unclear := [pair for pair in given.where if "=" not in pair]:
        parser.error(f"--where {unclear[0]}: write KEY=VALUE")
    return given


def rank(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is written to the JSON."""
    images, labels, rate, meta = read_export(given.exported)
    where = dict(pair.split("=", 1) for pair in given.where)
    if given.ours:  # a mistake here must not cost the hours before
        our_accuracies(given.ours, meta["digest"], where, [])
    try:
        from ddranking.metrics import LabelRobustScoreHard
        from ddranking.utils.train_and_eval import REAL_DATA_ACC_CACHE
    except ImportError as error:
        raise RankError(f"DD-Ranking is not here ({error}); run by: make rank SET=...") from error

    if given.threads:
        torch.set_num_threads(given.threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    patches = [
        "ddranking.metrics.hard_label.save_results: hands the results over (as published it crashes)",
        "ddranking.metrics.hard_label.set_seed: seed + number of the evaluation (as published it reads the clock)",
    ]
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if given.prepared:
            if meta["dataset"] != "CIFAR10":
                raise RankError(f"--prepared: {meta['dataset']} is given as DD-Ranking takes it, with --real")
            real = scratch / "real"
            sums, digest = write_batches(given.prepared, real, given.test_images)
            trust_batches(sums)
            patches.append(
                "torchvision.datasets.CIFAR10: checksums of batches written from the prepared data "
                "(same pixels, labels and order as the official ones)"
            )
        else:
            real = check_official(given.real) if meta["dataset"] == "CIFAR10" else given.real
            digest = "as DD-Ranking loads them"
        log = stack.enter_context((given.exported / "ddranking.log").open("w"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        say("loading the real images")
        evaluator = LabelRobustScoreHard(
            dataset=meta["dataset"],
            real_data_path=str(real),
            ipc=meta["ipc"],
            model_name=given.model,
            data_aug_func=None if given.augmentation == "none" else given.augmentation,
            aug_params=dict(DSA),
            optimizer="sgd",
            lr_scheduler="step",
            step_size=max(1, given.epochs // 2),
            num_eval=given.evaluations,
            im_size=tuple(meta["shape"][-2:]),
            num_epochs=given.epochs,
            num_workers=given.workers,
            save_path=str(scratch / "scores.csv"),
            device=given.device,
            random_data_format="tensor",
            random_data_path=str(scratch / "random"),
        )
        tested = len(evaluator.test_loader_real.dataset)
        reference = {
            "dataset": meta["dataset"],
            "data": digest,
            "model": given.model,
            "epochs": given.reference_epochs,
            "images": given.reference_images or len(evaluator.dst_train),
            "of_images": len(evaluator.dst_train),
            "test_images": tested,
            "seed": given.seed,
            "device": str(given.device).split(":")[0],
            "versions": versions(),
        }

        def measure() -> float:
            say(f"training on the full data, {reference['images']} images, {given.reference_epochs} epochs")
            return train_reference(evaluator, given.reference_epochs, given.reference_images, given.seed, given.workers)

        full = cached(given.reference_cache, reference, measure)
        REAL_DATA_ACC_CACHE[f"{meta['dataset']}-{given.model}"] = full
        say("judging the set")
        found = judge(evaluator, [(images, given.evaluations)], labels, rate, given.seed, full, say)
        control = None
        if given.control:
            say("judging random real images")
            seeds = range(given.seed + 1_000_003, given.seed + 1_000_003 + given.evaluations)
            draws = [(draw_control(evaluator, meta["ipc"], seed), 1) for seed in seeds]
            control = judge(evaluator, draws, labels, None, given.seed + given.evaluations, full, say)
            control["IOR_near_zero"] = near_zero(control["IOR"]["values"])
    notes = []
    if meta["labels"] == "soft":
        notes.append("the set has soft labels; this score trains on hard ones")
    five = "the best of DD-Ranking's five learning rates, chosen on the test images"
    notes.append(f"random images: {five}; the set: " + ("the same" if rate is None else f"its recorded rate {rate:g}"))
    best = found["accuracy_set_pct"]["values"]
    return {
        "judge": "DD-Ranking, LabelRobustScoreHard",
        "judged": {key: meta[key] for key in ("dataset", "ipc", "digest", "steps", "lr")},
        "settings": {
            "model": given.model,
            "epochs": given.epochs,
            "evaluations": given.evaluations,
            "augmentation": given.augmentation,
            "optimizer": "SGD, momentum 0.9, weight decay 5e-4, rate / 10 at half time, batch 256",
            "seed": given.seed,
            "device": str(given.device),
            "threads": torch.get_num_threads(),
            "test_images": tested,
            "weight": 0.5,
        },
        "full_data": {"accuracy_pct": full, **{k: reference[k] for k in ("epochs", "images", "of_images", "data")}},
        "set": found,
        "control": control,
        "ours": our_accuracies(given.ours, meta["digest"], where, best) if given.ours else None,
        "notes": notes,
        "patches": patches,
        "versions": versions(),
    }


def _value(found: dict[str, Any], digits: int) -> str:
    std = "" if found["std"] is None else f" ± {found['std']:.{digits}f}"
    each = ", ".join(f"{v:.{digits}f}" for v in found["values"])
    return f"{found['mean']:.{digits}f}{std}  ({each})"


def described(result: dict[str, Any]) -> str:
    """The result in lines to read; ± is the standard deviation over evaluations or seeds."""
    settings, full = result["settings"], result["full_data"]
    lines = [
        f"{result['judge']}: {result['judged']['dataset']}, IPC {result['judged']['ipc']}, {settings['model']}, "
        f"{settings['epochs']} epochs, {settings['evaluations']} evaluations, {settings['test_images']} test images",
        f"full data  {full['accuracy_pct']:.2f} %  "
        f"({full['images']} of {full['of_images']} images, {full['epochs']} epochs)",
    ]
    for name, label in (("set", "set"), ("control", "random real images (control)")):
        if found := result[name]:
            lines.append(label)
            lines.append(f"  accuracy {_value(found['accuracy_set_pct'], 2)} %")
            lines.append(f"  random   {_value(found['accuracy_random_pct'], 2)} %")
            lines += [f"  {score}      {_value(found[score], 4)}" for score in ("HLR", "IOR", "LRS")]
    if result["control"] and (zero := result["control"]["IOR_near_zero"]):
        holds = "holds" if zero["holds_zero"] else "does not hold"
        lines.append(f"  IOR 95 % interval {zero['mean']:.4f} ± {zero['half_width_95']:.4f} {holds} zero")
    for entry in result["ours"] or []:
        apart = entry["best_minus_judge_in_pooled_std"]
        lines.append(f"our {entry['architecture']}")
        lines.append(f"  last     {_value(entry['accuracy_last_pct'], 2)} %")
        lines.append(f"  best     {_value(entry['accuracy_best_pct'], 2)} %")
        lines.append(f"  best minus judge's: {'not defined' if apart is None else f'{apart:+.2f} pooled deviations'}")
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    screen = sys.stderr

    def say(what: str) -> None:
        print(f"rank: {what}", file=screen, flush=True)

    try:
        result = rank(given, say)
    except RankError as error:
        say(str(error))
        return 2
    out = given.out or given.exported / "ddranking.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(described(result))
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
