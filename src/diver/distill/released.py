"""A set that others have released, in place of one that is made here."""

from dataclasses import replace
from pathlib import Path

from diver.config.distill import ReleasedConfig
from diver.data.prepared import Prepared
from diver.progress import Progress
from diver.sets import DistilledSet, SetError, Step, ValueRange, import_released


def released_set(
    data: Prepared, ipc: int, config: ReleasedConfig, code: str = "", progress: Progress | None = None
) -> DistilledSet:
    """The set of `config.path`, which is of the dataset `data`; the accuracies in the file go into its record.

    Its images are taken to be standardised with the dataset's own mean and deviation unless the settings say
    otherwise. Raises SetError naming the file if it is damaged, or of another IPC or shape.
    """
    value_range = ValueRange.standardised(data.mean, data.std)
    if config.value_range != "dataset":
        value_range = ValueRange(config.value_range)
    found, facts = import_released(config.path, data.dataset, data.classes, value_range)
    if found.ipc != ipc:
        raise SetError(f"{config.path}: {found.ipc} images per class, and IPC {ipc} is asked for")
    if found.images.shape[1:] != data.train_images.shape[1:]:
        ours, theirs = list(data.train_images.shape[1:]), list(found.images.shape[1:])
        raise SetError(f"{config.path}: images of {theirs}, and those of {data.dataset} are {ours}")
    parameters = {
        **found.steps[0].parameters,
        "file": Path(config.path).name,
        "value_range": config.value_range,
        "recorded": facts["accuracies"],
    }
    return replace(found, steps=(Step("released", parameters, None, code),))
