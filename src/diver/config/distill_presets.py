"""Published settings of the stage-1 methods by dataset and IPC: `preset: published` in a study.

Sources: the released code and settings of DC, DSA and DM (one code for the three), MTT (with the settings that its
authors gave to DC-BENCH), EDF, SRe2L and RDED; for the ImageNet subsets at 128 pixels GLaD's pixel-space settings of DC
and DM. What stands here differs from a method's defaults.
"""

from collections.abc import Mapping
from typing import Any

from diver.config.base import nearest

SUBSETS = [
    *(f"image{name}" for name in ("nette", "woof", "meow", "squawk", "fruit", "yellow")),
    *(f"imagenet-{name}" for name in ("a", "b", "c", "d", "e", "idc")),
]
SUBSET = "imagenet-subset"
# Parts of a dataset take its settings.
PARTS = ("-slice", "-held-out")
# ConvNet blocks by dataset, down to 4 x 4 features.
DEPTH = {"cifar10": 3, "cifar100": 3, "tinyimagenet": 4, SUBSET: 5}
CONDENSED = ("cifar10", "cifar100", "tinyimagenet")
ANY = 0

Table = Mapping[str, Mapping[int, dict[str, Any]]]


def _mtt(
    steps: int, epochs: int, start: int, images: float, rate: float, first: float = 0.01, batch: int | None = None
) -> dict[str, Any]:
    """A row of MTT's settings: N, M, T+, learning rates of images and of the step size, first step size, batch."""
    return {
        "syn_steps": steps,
        "expert_epochs": epochs,
        "max_start": start,
        "learning_rate": images,
        "rate_rate": rate,
        "syn_rate": first,
        "batch_syn": batch,
    }


_MTT: Table = {
    "cifar10": {
        1: {**_mtt(50, 2, 2, 100, 1e-7), "experts": "zca"},
        10: {**_mtt(30, 2, 20, 100, 1e-5, 0.001), "experts": "zca"},
        50: {**_mtt(30, 2, 40, 1000, 1e-5, 0.001), "experts": "plain"},
    },
    "cifar100": {
        1: {**_mtt(20, 3, 20, 1000, 1e-5), "experts": "zca"},
        10: {**_mtt(20, 2, 20, 1000, 1e-5), "experts": "plain"},
        50: {**_mtt(80, 2, 40, 1000, 1e-5, batch=125), "experts": "zca"},
    },
    "tinyimagenet": {
        1: {**_mtt(10, 2, 10, 1e4, 1e-4), "experts": "plain"},
        10: {**_mtt(20, 2, 40, 1e4, 1e-4, batch=200), "experts": "plain"},
        50: {**_mtt(20, 2, 40, 1e4, 1e-4, batch=300), "experts": "plain"},
    },
    SUBSET: {ANY: {**_mtt(20, 2, 10, 1000, 1e-6), "experts": "plain"}},
}


def _edf(
    steps: int, images: float, batch: int, label: float, window: tuple[int, int], dropped: float, interval: int,
    decay: float, growth: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    return {
        "experts": "edf",
        "attention": "imagenet",
        "syn_steps": steps,
        "learning_rate": images,
        "batch_syn": batch,
        "label_rate": label,
        "first_max_start": window[0],
        "max_start": window[1],
        "dropped": dropped,
        "interval": interval,
        "ema_decay": decay,
        "expansion_end": growth,
    }


_EDF: dict[int, dict[str, Any]] = {
    1: _edf(40, 1e4, 1000, 2, (5, 10), 0, 50, 0.999),
    10: _edf(40, 1e3, 200, 2, (10, 20), 0.25, 100, 0.9995),
    50: _edf(80, 1e3, 128, 5, (20, 40), 0.375, 200, 0.999, 2000),
}
# Where a subset departs from ImageNette. Those of ours that EDF's code has no settings for take ImageNette's, as does
# ImageFruit at IPC 1 and 10, whose files have IPC 50's settings but for three, and even its IPC.
_EDF_50 = {"learning_rate": 100.0, "threshold": 1.1, "interval": 100}
_EDF_SUBSETS: Table = {
    "imagewoof": {
        1: {"label_rate": 3.0, "threshold": 2.0},
        10: {"label_rate": 3.0, "threshold": 2.0, "batch_syn": 250, "rate_rate": 1e-6, "beta": 2.0},
        50: {"syn_steps": 40, "learning_rate": 100.0, "batch_syn": 250, "beta": 2.0},
    },
    "imagemeow": {
        1: {"label_rate": 3.0, "threshold": 2.0},
        10: {"threshold": 2.0, "batch_syn": 250},
        50: _EDF_50,
    },
    "imagesquawk": {
        1: {"label_rate": 3.0},
        10: {"label_rate": 3.0, "threshold": 2.0, "batch_syn": 250},
        50: {**_EDF_50, "syn_rate": 0.005, "dropped": 0.5, "ema_decay": 0.9995, "expansion_end": 1000},
    },
    "imageyellow": {
        1: {"label_rate": 3.0},
        10: {"label_rate": 3.0, "threshold": 2.0, "batch_syn": 250},
        50: {
            "syn_steps": 40, "learning_rate": 100.0, "batch_syn": 200, "ema_decay": 0.9995, "expansion_end": 1000,
        },
    },
    "imagefruit": {50: {**_EDF_50, "ema_decay": 0.9995, "expansion_end": 1000}},
}  # fmt: skip


def _datm(
    images: float, label: float, window: tuple[int, int], threshold: float, decay: float, growth: int = 1000,
    epochs: int = 2, rate: float = 1e-5,
) -> dict[str, Any]:  # fmt: skip
    return {
        **_edf(40, images, 1000, label, window, 0, 100, decay, growth),
        "experts": "edf-zca",
        "attention": "none",
        "expert_epochs": epochs,
        "threshold": threshold,
        "rate_rate": rate,
    }


# EDF's files for these have neither of its ideas, which makes them DATM's. Its others of these datasets have settings
# that its code does not read, or no beta, and are left out.
_EDF_WHITE: Table = {
    "cifar10": {
        1: _datm(1e4, 5, (4, 4), 1.5, 0.995, rate=1e-7),
        10: _datm(1e3, 2, (10, 20), 1.0, 0.9995),
        50: _datm(100, 2, (20, 40), 1.0, 0.995, 2000),
    },
    "cifar100": {1: _datm(1e3, 10, (20, 30), 1.0, 0.9995, epochs=3)},
    "tinyimagenet": {1: _datm(1e4, 10, (15, 20), 1.0, 0.9995, 2000, rate=1e-4)},
}

# Of their experts' ConvNet, where it is not the usual one.
_EDF_DEPTH = {"cifar10": 5}

_SRE2L: Table = {
    "cifar10": {ANY: {"iterations": 1000, "crop": False, "flip": False, "jitter": 4}},
    "cifar100": {ANY: {"iterations": 1000, "crop": False, "flip": False, "jitter": 4}},
    "tinyimagenet": {ANY: {"learning_rate": 0.1, "r_bn": 1.0, "jitter": 4}},
    "imagenet1k": {ANY: {}},
    SUBSET: {ANY: {}},
}
_RDED: Table = {
    "cifar10": {ANY: {"factor": 1}},
    "cifar100": {ANY: {"factor": 1}},
    "tinyimagenet": {ANY: {"factor": 1}},
    "imagenet1k": {ANY: {}},
    SUBSET: {ANY: {}},
}


def _by_dataset(table: Mapping[str, dict[str, Any]]) -> Table:
    return {name: {ANY: settings} for name, settings in table.items()}


# What GLaD calls DC is augmented as DSA is, and starts from noise.
_GLAD = {
    "learning_rate": 1.0,
    "outer": 1,
    "inner": 1,
    "init": "noise",
    "augmentation": "color_crop_cutout_flip_scale_rotate",
}
PUBLISHED: dict[str, Table] = {
    "dc": _by_dataset({**dict.fromkeys(CONDENSED, {}), SUBSET: _GLAD}),
    "dsa": _by_dataset({**dict.fromkeys(CONDENSED, {}), SUBSET: _GLAD}),
    "dm": _by_dataset(
        {
            **dict.fromkeys(CONDENSED, {"iterations": 20000, "init": "real"}),
            SUBSET: {"iterations": 1000, "learning_rate": 10.0, "init": "noise"},
        }
    ),
    "mtt": _MTT,
    "edf": {**_EDF_WHITE, SUBSET: _EDF},
    "sre2l": _SRE2L,
    "rded": _RDED,
}

# Experts by the names that the settings above use.
EXPERTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zca": {"zca": True},
    "edf": {"epochs": 100, "optimizer": "gsam", "adaptive": True},
    "edf-zca": {"epochs": 100, "optimizer": "gsam", "adaptive": True, "zca": True},
}


def family(dataset: str) -> str:
    """The dataset whose settings a dataset takes: its own name, that of the whole, or the ImageNet subsets'."""
    dataset = _whole(dataset)
    return SUBSET if dataset in SUBSETS else dataset


def _whole(dataset: str) -> str:
    for part in PARTS:
        dataset = dataset.removesuffix(part)
    return dataset


def published(method: str, dataset: str, ipc: int) -> dict[str, Any]:
    """The published settings of a method for a dataset and IPC.

    Raises ValueError, with what is known, for a method without published settings, or a dataset or IPC that has none.
    """
    if method not in PUBLISHED:
        raise ValueError(f"{method} has no published settings; {nearest(method, list(PUBLISHED))}")
    known, wanted = PUBLISHED[method], family(dataset)
    if wanted not in known:
        raise ValueError(f"{method}: no published settings for {dataset}; known: {', '.join(known)}")
    rows = known[wanted]
    if ipc not in rows and ANY not in rows:
        raise ValueError(
            f"{method} on {dataset}: no published settings for IPC {ipc}; known: {', '.join(map(str, rows))}"
        )
    settings = dict(rows[ipc] if ipc in rows else rows[ANY])
    if method in ("dc", "dsa", "dm"):
        settings["depth"] = DEPTH[wanted]
        if method == "dm" and wanted != SUBSET and ipc >= 100:
            settings["learning_rate"] = 10.0
    if method == "edf":
        settings |= _EDF_SUBSETS.get(_whole(dataset), {}).get(ipc, {})
    return settings


def published_experts(name: str, dataset: str) -> dict[str, Any]:
    """Settings of the experts that a published setting names. Raises ValueError for another name."""
    if name not in EXPERTS:
        raise ValueError(f"unknown experts {name!r}; {nearest(name, list(EXPERTS))}")
    depth = _EDF_DEPTH.get(_whole(dataset)) if name == "edf-zca" else None
    return {**EXPERTS[name], "depth": depth or DEPTH.get(family(dataset), 3)}
