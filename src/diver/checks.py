"""What a study is refused for before anything runs: its configuration, its datasets, and what must be here already.

All of it comes in one message. What is only missing (a folder of ImageNet, a released file, a local prior) does not
stand in the way of planning: a dry run tells it and goes on.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from diver.config.augment import COLOURED
from diver.config.base import length_of, nearest
from diver.config.distill import NETWORKS, PIXELS, TEACHER
from diver.config.networks import check_options
from diver.config.prior import JUDGED, PriorChoice
from diver.config.protocols import by_ipc
from diver.config.recover import SETTINGS
from diver.config.study import NONE, Study, examine, refusal
from diver.config.text import ATTRIBUTES, MODEL
from diver.data.spec import DatasetSpec, FolderSource, SpecError, load_dataset_spec
from diver.prior.classes import IMAGENET, WNID, class_ids, labels_of
from diver.study import native_entries, prepared_path, prior_path, set_cells

SPECS = Path("config/datasets")
# Values of a stage-1 method's network that are no file.
NO_FILE = (PIXELS, TEACHER, "experts", "imagenet", NONE)
# Kinds of priors that say nothing of the variance, as they stand in names of sources.
UNLEARNED = ("sit", "stable-diffusion")
# Files of a prior that say what it is.
NETWORK, SCHEDULE, INDEX = "transformer/config.json", "scheduler/scheduler_config.json", "model_index.json"
AUTOENCODER = "vae/config.json"
# Stage-1 methods whose sets have soft labels, or may have them.
SOFT = ("edf", "released")


@dataclass(frozen=True)
class Checked:
    """A valid study, its datasets, and what it needs that is not here, a line each."""

    study: Study
    datasets: dict[str, DatasetSpec]
    missing: list[str]


def network_path(settings: dict[str, Any]) -> str | None:
    """The file of the trained network that a stage-1 method's settings name, if they do."""
    values = (settings.get(key) for key in NETWORKS)
    return next((one for one in values if one and one not in NO_FILE and not one.startswith("timm:")), None)


def is_hub_name(source: str) -> bool:
    """Whether a source reads as owner/name of a model hub."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def check_study(raw: dict[str, Any], source: str, root: Path = Path(), planning: bool = False) -> Checked:
    """A configuration's study and datasets. `root`: the folder that its paths start from.

    Raises ConfigError that lists every fault, one a line, with what is missing here; `planning` allows the latter
    alone.
    """
    study, faults = examine(raw)
    given = study.datasets if study is not None else raw.get("datasets")
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    datasets: dict[str, DatasetSpec] = {}
    for name in dict.fromkeys(names):
        path = root / SPECS / f"{name}.yaml"
        if not path.exists():
            known = [one.stem for one in (root / SPECS).glob("*.yaml")]
            faults.append(f"datasets: no {SPECS / path.name}; {nearest(name, known)}")
            continue
        try:
            datasets[name] = load_dataset_spec(path)
        except SpecError as error:
            faults.append(f"datasets: {error}")
    missing: list[str] = []
    if study is not None:
        faults += [line for line in dict.fromkeys(_faults(study, datasets, root)) if line not in faults]
        missing = list(dict.fromkeys(_missing(study, datasets, root)))
    if study is None or faults or (missing and not planning):
        raise refusal(source, [*faults, *missing])
    return Checked(study, datasets, missing)


def _faults(study: Study, datasets: dict[str, DatasetSpec], root: Path) -> Iterator[str]:
    """What does not fit together once the datasets are known."""
    for name, spec in datasets.items():
        fewest, ipcs = images_per_class(spec, root), study.ipcs(name)
        if fewest is not None and max(ipcs) > fewest:
            key = f"ipc_of.{name}" if name in study.ipc_of else "ipc"
            yield (
                f"{key}: IPC {max(ipcs)} is more than the {fewest} training images of {name}'s smallest class; lower it"
                + ("" if key != "ipc" else f", or give `ipc_of: {{{name}: [...]}}`")
            )
        images = (len(spec.classes), spec.channels, spec.size)
        if study.prior.classifier and study.prior.source == "trained" and images != JUDGED:
            yield (
                "prior.classifier: it judges images of {} classes, {} channels and {} pixels, and those of {} have "
                "{}, {} and {}; leave it out".format(*JUDGED, name, *images)
            )
        asked = _asks_prior(study, name)
        if asked and study.prior.source == "shipped" and not (root / f"data/shipped/{name}-prior").is_dir():
            yield (
                f"prior.source: none is shipped for {name}; name a directory or a hub's (facebook/DiT-XL-2-256 for "
                "ImageNet's classes), or 'trained' to have one trained on the dataset"
            )
        taken = _told(study, name, root, AUTOENCODER).get("in_channels")
        if asked and study.prior.autoencoder is None and isinstance(taken, int) and taken != spec.channels:
            yield (
                f"prior.source: {study.prior.source} takes images of {taken} channels, and {name} has {spec.channels}; "
                "name another, or 'trained' to have one trained on the dataset"
            )
    words, prior = study.prior.words(), study.prior
    if words and (prior.source in ("shipped", "trained") or prior.family in ("dit", "sit")):
        yield f"prior.{next(iter(words))}: is for a prior that reads, and {prior.source} is none; leave it out"
    yield from _network_faults(study, datasets, root)
    for stage2, entry in study.recover.items():
        for stage1, made in study.distill.items():
            settings = entry.full(stage1)
            places = [place for place in study.places(made) if study.treats(stage2, stage1, *place)]
            known = {name: datasets[name].size for name, _ in places if name in datasets}
            uneven = [name for name, size in known.items() if size % settings["tiles"]]
            if uneven:
                yield (
                    f"recover.{stage2}.settings.tiles: {settings['tiles']} does not divide the {known[uneven[0]]} "
                    f"pixels of {', '.join(uneven)}; take a divisor, 2 for NCFM"
                )
            for name in known:
                yield from _prior_faults(f"recover.{stage2}", settings, study, datasets[name], root)
            for ipc in {ipc for _, ipc in places}:
                try:
                    SETTINGS[entry.method](**settings).require_levels(ipc)
                except ValueError as fault:
                    yield f"recover.{stage2}.settings: {fault}"
            learned = settings.get("sg_sigma") == "learned" and settings["sg_inject"] == "sample" and settings["gamma"]
            if places and learned and learns_variance(study.prior, root) is False:
                yield (
                    f"recover.{stage2}: sg_sigma 'learned' wants a prior that predicts its variance, and "
                    f"{study.prior.source} has none; set settings: {{sg_sigma: posterior}}, or take a DiT as "
                    "prior.source"
                )


def _asks_prior(study: Study, dataset: str) -> bool:
    """Whether some set of a dataset is recovered, or made by a prior."""
    natives = native_entries(study)
    return any(cell.dataset == dataset and (cell.stage2 != NONE or cell.stage1 in natives) for cell in set_cells(study))


def _prior_faults(key: str, settings: dict[str, Any], study: Study, spec: DatasetSpec, root: Path) -> Iterator[str]:
    """Settings that do not name a class of the prior for each of a dataset's, or ask for levels or channels that it
    lacks."""
    given = settings.get("class_ids")
    if given is not None and len(given) != len(spec.classes):
        yield (
            f"{key}.settings.class_ids: {len(given)} given for the {len(spec.classes)} classes of {spec.name}; give "
            "one for each, or leave them out"
        )
    elif "class_ids" in settings and (fault := _class_fault(study, spec, given, root)):
        yield f"{key}: {fault}"
    # MGD3's; DIVER's has another name.
    if settings.get("sigma") == "learned" and learns_variance(study.prior, root) is False:
        yield f"{key}.settings.sigma: {study.prior.source} predicts no variance to be 'learned'; take auto or posterior"
    respacing, steps = settings.get("respacing"), _told(study, spec.name, root, SCHEDULE).get("num_train_timesteps")
    if respacing and study.prior.family != "sit" and isinstance(steps, int) and length_of(respacing) > steps:
        yield f"{key}.settings.respacing: {respacing!r} is longer than the prior's schedule of {steps}; lower it"
    guided, channels = settings.get("cfg_channels") or 0, _told(study, spec.name, root, NETWORK).get("in_channels")
    if isinstance(channels, int) and guided > channels:
        yield (
            f"{key}.settings.cfg_channels: {guided} is more than the {channels} channels of the prior's latents; lower "
            "it, or leave it out to guide all"
        )


def _network_faults(study: Study, datasets: dict[str, DatasetSpec], root: Path) -> Iterator[str]:
    """Networks and augmentations that do not take the images of a dataset, and protocols that do not say its IPCs."""
    for dataset, spec in datasets.items():
        own, protocol = study.students_of.get(dataset), study.students_at(dataset).protocol
        parts = ("protocol", "architectures")
        of = {key: f"students_of.{dataset}" if getattr(own, key, None) is not None else "students" for key in parts}
        if protocol.augmentation in COLOURED and spec.channels != 3:
            yield (
                f"{of['protocol']}.protocol.augmentation: {protocol.augmentation!r} is for 3 channels, and {dataset} "
                f"has {spec.channels}; take another, as crop_flip"
            )
        patches = protocol.at(len(spec.classes)).patches
        if protocol.augmentation == "rded" and patches is not None and patches > spec.size:
            yield (
                f"{of['protocol']}.protocol.patches: {patches} is more than the {spec.size} pixels of a side of "
                f"{dataset}'s images; take a divisor, as 2"
            )
        used = [made for made in study.distill.items() if any(name == dataset for name, _ in study.places(made[1]))]
        hard = [stage1 for stage1, made in used if made.method not in SOFT]
        if hard and protocol.at(len(spec.classes)).labels == "soft":
            yield (
                f"{of['protocol']}.protocol.labels: 'soft' is for sets with soft labels, and those of "
                f"{', '.join(hard)} have hard ones; take own, which is soft where a set has them"
            )
        for key in ("epochs", "batch"):
            for ipc in study.ipcs(dataset):
                try:
                    by_ipc(getattr(protocol.at(len(spec.classes)), key), ipc, f"{of['protocol']}.protocol.{key}")
                except ValueError as fault:
                    yield str(fault)
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            f"{of['architectures']}.architectures.{name}": (one.network, one.options)
            for name, one in study.students_at(dataset).architectures.items()
        }
        teacher = study.teacher_at(dataset)
        if teacher is not None and teacher.network is not None and teacher.source == "trained":
            key = f"teacher_of.{dataset}" if dataset in study.teacher_of else "teacher"
            asked[key] = (teacher.network, teacher.options)
        for stage1, made in study.distill.items():
            for ipc in (ipc for name, ipc in study.places(made) if name == dataset):
                try:
                    settings = made.at(dataset, ipc)
                except ValueError:
                    # Told by the study itself.
                    continue
                yield from _prior_faults(f"distill.{stage1}", settings, study, spec, root)
                if (depth := settings.get("depth")) is not None:
                    asked[f"distill.{stage1}"] = ("convnet", {"depth": depth})
                if (name := settings.get("experts")) in study.all_experts():
                    depth = study.all_experts()[name].at(dataset)["depth"]
                    asked[f"experts.{name}"] = ("convnet", {"depth": depth})
        for key, (network, options) in asked.items():
            try:
                check_options(network, options, spec.size)
            except ValueError as fault:
                shown = "".join(f" with {name} {value}" for name, value in options.items())
                yield f"{key}: {network}{shown} is not for {dataset}: {fault}"


def images_per_class(spec: DatasetSpec, root: Path = Path()) -> int | None:
    """Training images of a dataset's smallest class: of its prepared file, else what its specification says."""
    path = root / prepared_path(spec.name)
    if path.exists():
        try:
            with safe_open(path, framework="numpy") as file:
                return int(np.bincount(file.get_tensor("train_labels"), minlength=len(spec.classes)).min())
        except SafetensorError:
            pass
    if spec.pictures is None or "least" not in spec.pictures.train.model_fields_set:
        return None
    return max(1, spec.pictures.train.least - spec.held_out)


def _told(study: Study, dataset: str, root: Path, part: str) -> dict[str, Any]:
    """What a file of settings of a dataset's prior says, and of one that is to be trained the study; empty if nothing
    does."""
    if study.prior.source == "trained":
        return {"in_channels": study.prior.vae.latent_channels} if part == NETWORK else {}
    try:
        content = json.loads((root / prior_path(study, dataset) / part).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _class_fault(study: Study, spec: DatasetSpec, given: list[int] | None, root: Path) -> str | None:
    """Why a prior has no class for each of a dataset's, as far as its files tell."""
    count = _told(study, spec.name, root, NETWORK).get("num_embeds_ada_norm")
    # Those of ImageNet are found by what takes seconds to import.
    if not isinstance(count, int) or (given is None and count == IMAGENET and all(map(WNID.fullmatch, spec.classes))):
        return None
    try:
        class_ids(
            spec.classes,
            given,
            count,
            labels_of(_told(study, spec.name, root, INDEX).get("id2label")),
            study.prior.source,
        )
    except ValueError as fault:
        return str(fault)
    return None


def learns_variance(prior: PriorChoice, root: Path = Path()) -> bool | None:
    """Whether a prior predicts its variance, as far as its files or its name tell; None if they do not."""
    if prior.source in ("shipped", "trained") or prior.family in UNLEARNED:
        return False
    path = root / prior.source
    try:
        content = json.loads((path / "transformer/config.json").read_text())
        return content["out_channels"] == 2 * content["in_channels"]
    except (OSError, ValueError, KeyError, TypeError):
        name = path.name.lower()
    if name.startswith(UNLEARNED) or (path / "unet").is_dir():
        return False
    return True if name.startswith("dit") else None


def _missing(study: Study, datasets: dict[str, DatasetSpec], root: Path) -> Iterator[str]:
    """What must be here and is not."""
    yield from _missing_folders(datasets, root)
    for stage1, entry in study.distill.items():
        for dataset, ipc in study.places(entry):
            try:
                settings = entry.at(dataset, ipc)
            except ValueError:
                continue
            path = settings.get("path")
            if path and not (root / path).exists():
                yield f"distill.{stage1}: no released set {path} ({dataset}, IPC {ipc}); put it there or mend `path`"
            network = network_path(settings)
            if network and not (root / network).exists():
                yield f"distill.{stage1}: no network {network}; `diver teach` makes one"
            path = settings.get("experts") or ""
            if "/" in path and not (root / path / "experts.json").exists():
                yield f"distill.{stage1}.settings.experts: no {path}/experts.json; `diver experts` makes them"
    teachers = {"teacher": study.teacher} | {f"teacher_of.{name}": one for name, one in study.teacher_of.items()}
    for key, teacher in teachers.items():
        source = teacher.source if teacher else "trained"
        if source != "trained" and not source.startswith("timm:") and not (root / source).exists():
            yield f"{key}.source: no file {source}; `diver teach` makes one, or name timm:NAME"
    asked = {"source": study.prior.source, "autoencoder": study.prior.autoencoder}
    for key, given in asked.items():
        if given and given not in ("shipped", "trained") and not is_hub_name(given) and not (root / given).exists():
            yield f"prior.{key}: no {given}; a directory, a released file, or owner/name of a hub"
    captions = study.preparations.captions
    of_captions = {"source": captions.source, "names": captions.names} if native_entries(study) else {}
    for key, given in of_captions.items():
        for path in dict.fromkeys(str(given).replace("{dataset}", name) for name in study.datasets):
            if given not in (None, ATTRIBUTES, MODEL) and not (root / path).exists():
                yield f"preparations.captions.{key}: no file {path}; put it there, or leave the key out"
    files = {"prior.classifier": study.prior.classifier, "report.published": study.report.published}
    for key, path in files.items():
        if path and not (root / path).exists():
            yield f"{key}: no file {path}; mend the path or leave the key out"


def _missing_folders(datasets: dict[str, DatasetSpec], root: Path) -> Iterator[str]:
    """Datasets that come from a folder of the user's alone, and none is given."""
    lacking: dict[str, list[str]] = {}
    for name, spec in datasets.items():
        folders = [source for source in spec.sources if isinstance(source, FolderSource)]
        if len(folders) < len(spec.sources) or (root / prepared_path(name)).exists():
            continue
        # It imports an HTTP client, which only these datasets need.
        from diver.data.sources import SourceFailure, acquire

        raw = Path("data/raw") / (spec.raw or name)
        for source in folders:
            if source.path and not Path(source.path).is_absolute():
                source = source.model_copy(update={"path": str(root / source.path)})
            try:
                acquire(spec, source, root / raw)
                break
            except SourceFailure as failure:
                told = f"{failure.happened}. {failure.remedy}".replace(f"{root / raw}", str(raw))
        else:
            lacking.setdefault(told, []).append(name)
    for told, names in lacking.items():
        yield f"datasets: {', '.join(names)}: {told}"
