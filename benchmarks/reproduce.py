"""Stage-1 methods at their published settings on CIFAR-10, each within a time limit, and what students learn from them.

    python benchmarks/reproduce.py --prepared data/prepared/cifar10.safetensors --runs dm:1:60 dsa:10:90 mtt:1:60

A run is METHOD:IPC:SECONDS. One that is not done so many seconds after its first iteration, in which a GPU's steps are
compiled (or `--at-most` so many iterations), is ended, and what it has by then is used; the line says how many of the
published iterations were made. Students are those of the papers: ConvNet-3, five seeds, 1000 epochs with DSA's
augmentation (`dc-eval`, which has MTT's whitened sets on white images), for DC 300 without (`dc-eval-plain`). Experts
for MTT are trained as they are needed, fewer than published and only for as many epochs as MTT looks at; with yet fewer
its students start earlier. All that is said too. Sets are written to a folder, for `diver evaluate` and the like. This
is what a GPU does in minutes; `config/stage1.yaml` and `config/stage1-plain.yaml` are the whole.
"""

import argparse
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from diver.config.distill import SETTINGS, ExpertsConfig
from diver.config.distill_presets import published, published_experts
from diver.config.protocols import protocol
from diver.config.students import Architecture
from diver.data.prepared import Prepared
from diver.distill import METHODS, dc, dm, loop, mtt
from diver.distill.base import distilled, standard_range
from diver.distill.experts import Experts, train_experts
from diver.report.statistics import t_interval
from diver.sets import LEARNED_RATE, WHITENING, DistilledSet
from diver.students import evaluate_set
from diver.workers import best_device

STUDENT = Architecture(network="convnet-3", label="ConvNet-3")


class TimeIsUp(Exception):
    pass


class Stopped(loop.Run):
    """A run that ends when its time is up. The last one made is kept."""

    last: "Stopped"
    until = seconds = float("inf")
    most: int | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Stopped.last = self

    def iterate(self, iterations: int, iteration: Any, picture: Any = None) -> None:
        self.total = iterations

        def watched(number: int) -> Any:
            if time.monotonic() > Stopped.until or number == Stopped.most:
                raise TimeIsUp
            found = iteration(number)
            if number == 0:
                # The first one also compiles and records the steps, where that is done.
                Stopped.until = time.monotonic() + Stopped.seconds
            return found

        super().iterate(iterations, watched, None)


def settings_of(method: str, ipc: int, options: argparse.Namespace) -> Any:
    chosen = published(method, "cifar10", ipc)
    if method == "mtt":
        chosen["experts"] = str(experts_folder(chosen["experts"], options))
        if (allowed := options.expert_epochs + 1 - chosen["expert_epochs"]) < chosen["max_start"]:
            print(f"students start before epoch {allowed} of an expert; published: {chosen['max_start']}", flush=True)
            chosen["max_start"] = allowed
    if "precision" in SETTINGS[method].model_fields:
        chosen["precision"] = options.precision
    return SETTINGS[method](**chosen)


def experts_folder(name: str, options: argparse.Namespace) -> Path:
    """Trained experts, made if they are not there."""
    folder = Path(options.out) / f"experts-{name}"
    config = ExpertsConfig(
        **{**published_experts(name, "cifar10"), "count": options.experts, "epochs": options.expert_epochs}
    )
    began = time.monotonic()
    train_experts(options.data, config, folder, progress=lambda *_: None)
    accuracy = Experts.open(folder).record()["test_accuracy"]
    print(
        f"experts {name}: {config.count} of {config.epochs} epochs, test accuracy {100 * accuracy:.1f} %, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return folder


def learned(
    method: str, ipc: int, config: Any, seconds: float, options: argparse.Namespace
) -> tuple[DistilledSet, str]:
    """The set, and how much was done for it in how much time."""
    began = time.monotonic()
    Stopped.until, Stopped.seconds = float("inf"), seconds
    try:
        made = METHODS[method](options.data, ipc, config, code="benchmark", progress=lambda *_: None)
    except TimeIsUp:
        run, found = Stopped.last, dict[str, Any]()
        images = run.state["images"].detach()
        if method == "mtt":
            experts = Experts.open(config.experts)
            found[LEARNED_RATE], zca = run.state["rate"].item(), experts.zca
            if zca:
                found[WHITENING] = {"epsilon": experts.config.zca_epsilon, "sha256": zca.digest()}
                images = standard_range(options.data).from_unit(zca.restore(images))
        made = distilled(images, options.data, ipc, method, config, "benchmark", found)
    run = Stopped.last
    return made, f"{run.done} of {run.total} iterations in {time.monotonic() - began:.0f} s"


def shown(values: list[float]) -> str:
    found = t_interval(values)
    return f"{found.mean:.1f} ± {found.half_width:.1f} %"


def one_run(text: str, options: argparse.Namespace, device: torch.device) -> None:
    method, ipc, seconds = text.split(":")
    config = settings_of(method, int(ipc), options)
    made, done = learned(method, int(ipc), config, float(seconds), options)
    made.write(Path(options.out) / f"{method}-{ipc}.safetensors")
    began, judged = time.monotonic(), "dc-eval-plain" if method == "dc" else "dc-eval"
    rows = evaluate_set(
        made, options.data, STUDENT, protocol(judged), range(options.seeds), progress=lambda *_: None, device=device
    )
    line = f"{method}, IPC {ipc}: {shown([row['accuracy_last'] for row in rows])}"
    line += " on white images" if rows[0]["white"] else ""
    print(f"{line}; {done}; students {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True, help="data/prepared/cifar10.safetensors")
    parser.add_argument("--runs", nargs="+", required=True, metavar="METHOD:IPC:SECONDS")
    parser.add_argument("--out", default="results/reproduce", help="folder for sets and experts")
    parser.add_argument(
        "--precision",
        default="bf16",
        choices=["fp32", "bf16"],
        help="of DC's, DSA's and DM's real images and MTT's students",
    )
    parser.add_argument("--at-most", type=int, metavar="N", help="iterations of each run; by default as published")
    parser.add_argument("--experts", type=int, default=8, help="experts for MTT; published: 100")
    parser.add_argument("--expert-epochs", type=int, default=22, help="of each; published 50, of which 22 are used")
    parser.add_argument("--seeds", type=int, default=5, help="students of a set")
    options = parser.parse_args()
    options.data, device, Stopped.most = Prepared.read(options.prepared), best_device(), options.at_most
    Path(options.out).mkdir(parents=True, exist_ok=True)
    for module in (dc, dm, mtt):
        # Where the methods look the class up.
        module.Run = Stopped  # type: ignore[attr-defined]
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", torch.__version__, flush=True)
    for text in options.runs:
        try:
            one_run(text, options, device)
        except Exception as error:
            print(f"{text}: failed: {type(error).__name__}", flush=True)
            traceback.print_exception(error)


if __name__ == "__main__":
    main()
