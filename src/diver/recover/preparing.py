"""All that a system makes its set from, one artefact after the other: outside the workflow, without its rules."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diver.config.native import CLUSTERING, PREPARATIONS, NativeConfig, Preparations
from diver.config.native.d3hr import D3HRConfig
from diver.config.native.edits import CLUSTERED_BY
from diver.config.native.minimax import MinimaxConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior, stamps
from diver.progress import Progress, reporter
from diver.recover.base import denoiser
from diver.recover.d3hr import class_statistics
from diver.recover.latents import Latents, chosen_images, encode_latents, require_channels
from diver.recover.minimax import write_tuned
from diver.recover.prototypes import find_prototypes, write_prototypes
from diver.recover.texts import captions_by_place, edits_texts, spoken, vlcp_texts, write_texts
from diver.recover.tuning import finetune, tunable
from diver.tensorfile import canonical_json
from diver.text.prepare import Embedded, caption_images, embed_captions, names_of


@dataclass(frozen=True)
class Work:
    """What preparations work on. `made`: artefacts that are there.

    `load` reads the prior anew, for what changes it, with other options where some are given.
    """

    system: str
    data: Prepared
    ipc: int
    prior: Prior
    load: Callable[..., Prior]
    config: Any
    shared: Preparations
    made: dict[str, Path]
    folder: Path
    progress: Progress

    def latents(self) -> Latents:
        return Latents.open(self.made["latents"], self.data, self.prior)


def _latents(work: Work, out: Path) -> None:
    encode_latents(work.data, work.prior, work.shared.latents, work.config.latents, out, work.progress)


def _prototypes(work: Work, out: Path) -> None:
    write_prototypes(out, *find_prototypes(work.latents(), work.ipc, work.config, work.progress))


def _statistics(work: Work, out: Path) -> None:
    folder = work.folder / "statistics"
    found = class_statistics(work.latents(), work.data, work.prior, work.config, progress=work.progress, folder=folder)
    found.write(out)


def _tuned(work: Work, out: Path) -> None:
    # Compiled blocks keep what they were compiled for, and in half precision steps would be lost to rounding.
    prior, checkpoint = work.load(compile=False, precision="fp32"), work.folder / "tuning.ckpt"
    found, _ = finetune(work.latents(), work.data, prior, work.config, checkpoint=checkpoint, progress=work.progress)
    write_tuned(prior, out.parent, found)
    checkpoint.unlink(missing_ok=True)


def _captions(work: Work, out: Path) -> None:
    data, config = work.data, work.shared.captions.of(work.data.dataset)
    chosen = chosen_images(data.train_labels, len(data.classes), config.per_class, work.shared.latents.seed)
    names, said = names_of(data, config), [spoken(name) for name in data.classes]
    caption_images(data.train_images, names, data.train_labels, said, config, out, work.progress, chosen.tolist())


def _features(work: Work, out: Path) -> None:
    names = names_of(work.data, work.shared.captions.of(work.data.dataset))
    embed_captions(work.data.train_images, names, work.made["captions"], work.shared.features, out, work.progress)


def _texts(work: Work, out: Path) -> None:
    data, ipc, prior, config = work.data, work.ipc, work.prior, work.config
    if work.system == "edits":
        features = Embedded.read(work.made["features"])
        found = edits_texts(features, data, ipc, prior, config, work.folder / "answers", work.progress)
    else:
        captions = captions_by_place(work.made["captions"], names_of(data, work.shared.captions.of(data.dataset)))
        found = vlcp_texts(work.latents(), captions, data, ipc, prior, config, work.progress)
    write_texts(out, found)


MAKERS: dict[str, Callable[[Work, Path], None]] = {
    "latents": _latents,
    "prototypes": _prototypes,
    "statistics": _statistics,
    "tuned": _tuned,
    "captions": _captions,
    "features": _features,
    "texts": _texts,
}
# What each is made from, but for texts, where systems differ.
SOURCES: dict[str, tuple[str, ...]] = {
    "prototypes": ("latents",),
    "statistics": ("latents",),
    "tuned": ("latents",),
    "features": ("captions",),
}


# Settings of a system that an artefact depends on, as the workflow's rules have them.
SETTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "prototypes": lambda config: config.model_dump(mode="json", include={"latents", *CLUSTERING}),
    "statistics": D3HRConfig.inversion,
    "tuned": MinimaxConfig.tuning,
    "texts": lambda config: config.model_dump(mode="json", include={"latents", *CLUSTERED_BY}),
}


def needed(system: str, last: str, given: Iterable[str]) -> set[str]:
    """Artefacts of a system that have to be there for `last`, without what those that are `given` are made from."""
    if last in given:
        return {last}
    sources = SOURCES.get(last, ())
    if last == "texts":
        sources = ("features",) if system == "edits" else ("latents", "captions")
    return {last}.union(*(needed(system, name, given) for name in sources))


def prepare(
    system: str,
    data: Prepared,
    ipc: int,
    load: Callable[..., Prior],
    config: NativeConfig,
    shared: Preparations,
    folder: Path,
    given: Mapping[str, Path] | None = None,
    until: str | None = None,
) -> tuple[Prior, dict[str, Path]]:
    """The prior, and where a system's artefacts are: those that are `given`, and in `folder` those that are not.

    load: reads the prior, with other options (of PriorOptions) than its own where some are given.
    What an earlier run left in the folder is taken if it was made of the same files with the same settings, of those
    that it depends on. Makes what the artefact `until` takes, the last one where left out. Raises ValueError as the
    preparations do.
    """
    prior, made = load(), dict(given or {})
    # Before hours of captions.
    require_channels(data, prior)
    denoiser(prior, prior.schedule(config.respacing), prior.class_table(data.classes, config.class_ids), config)
    captions = shared.captions.of(data.dataset)
    read = [*made.values(), *(Path(name) for name in (captions.source, captions.names) if name)]
    key = {
        **{
            "system": system,
            "data": data.digest(),
            "prior": prior.identity(),
            "shared": shared.model_dump(mode="json"),
        },
        **{"given": {name: str(path) for name, path in made.items()}, "files": [stamps(path) for path in read]},
    }
    wanted = needed(system, until or PREPARATIONS[system][-1].name, made)
    if "tuned" in wanted:
        tunable(prior)
    for artefact in PREPARATIONS[system]:
        name = artefact.name
        if name in wanted and name not in made:
            out, note = folder / f"{name}{artefact.suffix}", folder / f"{name}.settings.json"
            settings = SETTINGS[name](config) if name in SETTINGS else {"latents": config.latents}
            text = canonical_json({**key, "settings": settings, "ipc": ipc if artefact.per == "set" else None})
            if not (out.exists() and note.exists() and note.read_text() == text):
                out.parent.mkdir(parents=True, exist_ok=True)
                note.unlink(missing_ok=True)
                progress = reporter(f"{system}: {name}", every=5)
                work = Work(system, data, ipc, prior, load, config, shared, made, folder, progress)
                MAKERS[name](work, out)
                note.write_text(text)
            made[name] = out
    return prior, made
