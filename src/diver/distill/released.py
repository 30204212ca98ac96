"""A set that others have released, in place of one that is made here."""

from dataclasses import replace
from pathlib import Path

from diver.config.distill import ReleasedConfig
from diver.data.prepared import Prepared
from diver.importers import import_set
from diver.progress import Progress
from diver.sets import LEARNED_RATE, WHITENING, DistilledSet, SetError, Step, ValueRange, resized


def released_set(
    data: Prepared,
    ipc: int,
    config: ReleasedConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """The set of `config.path`, which is of the dataset `data`, in any form of `diver.importers`.

    The step's parameters hold the settings and what was found: form, checksum, notes, learned rate, and the recorded
    accuracies as fractions. `ipc` counts images as they are in the source, before `config.factor` cuts them. `folder`
    is not used. Raises SetError naming the file if it is damaged, or of another IPC or shape.
    """
    if not config.path:
        raise SetError("released: path is not given; name the released file or folder")
    standard = ValueRange.standardised(data.mean, data.std)
    settings = config.model_dump(mode="json", exclude={"seed", "path"})
    asked = {key: value for key, value in settings.items() if key != "size"}
    found = import_set(config.path, data.dataset, data.classes, standard, ipc=ipc, **asked)
    made = found.distilled
    if config.size:
        made = replace(made, images=resized(made.images, config.size))
    if made.images.shape[1:] != data.train_images.shape[1:]:
        ours, theirs = list(data.train_images.shape[1:]), list(made.images.shape[1:])
        remedy = f"set `size: {ours[-1]}` to have them resized"
        raise SetError(f"{config.path}: images of {theirs}, and those of {data.dataset} are {ours}; {remedy}")
    parameters = {**settings, "file": Path(config.path).name, "recorded": {}}
    if found.form == "own":
        chain = [{"method": step.method, "parameters": step.parameters, "seed": step.seed} for step in made.steps]
        parameters |= {"form": "own", "notes": list(found.notes), "digest": made.digest(), "made_by": chain}
        for step in made.steps:
            kept = ("recorded", LEARNED_RATE, WHITENING)
            parameters |= {key: step.parameters[key] for key in kept if key in step.parameters}
    else:
        # What was found stands in place of a setting that left it open.
        parameters |= made.steps[-1].parameters
    return replace(made, steps=(Step("released", parameters, None, code),))
