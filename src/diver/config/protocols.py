"""Evaluation protocols of the field, as named settings that a study may depart from key by key.

Each preset is what the released code of its source does, read there; a departure is recorded with every result.
`QUIRKS` are the settings that are oddities of a released code rather than choices: they default to the protocol's
value and are named in the output when they are on.
"""

from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from diver.config.augment import VIEWS, check_augmentation
from diver.config.base import Model, nearest
from diver.config.mending import Faults, fault_lines
from diver.config.networks import OPTIONS
from diver.config.networks import PRESETS as NETWORKS

Share = Annotated[float, Field(ge=0, lt=1)]


def _number(value: Any) -> Any:
    """Not true, which would be 1."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Whole = Annotated[int, BeforeValidator(_number)]
# None: nothing is said up to this IPC.
ByIpc = Whole | dict[int, Whole | None]
# Kinds of networks that a rate may be given for; Swin is a library's.
FAMILIES = (*OPTIONS, "swin")


class Protocol(Model):
    """How a student is trained and tested. What is left out is the named protocol's."""

    # Nothing has to be given: the named protocol fills in the rest.
    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra=lambda schema: schema.pop("required", None)
    )

    name: str = Field("glad-eval", description="Named protocol that the other keys depart from.")
    epochs: ByIpc = Field(description="Passes over the set: a number, or {IPC up to which it holds: number or null}.")
    batch: ByIpc = Field(description="Images per step, likewise by IPC; a set that is smaller is one batch.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimiser.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    betas: tuple[Share, Share] = Field((0.9, 0.999), description="AdamW decay rates.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay: L2 with SGD, decoupled with AdamW.")
    decay_vectors: bool = Field(True, description="Decay biases and normalisation parameters too.")
    learning_rate: dict[str, float] = Field(description="Peak rate by kind of network; 'other' is for the rest.")
    learned_rate: bool = Field(
        False,
        description="Take the rate that a set's method learned, if it did (MTT, EDF), unless learning_rate is given.",
    )
    zca: bool = Field(
        False,
        description="Train and test on white images, by the ZCA of the training images, where a set was learned as "
        "such (MTT, EDF), as its papers do. Sets at the as-published scale stay as they are.",
    )
    schedule: Literal["glad", "cosine", "half-cosine", "idc-steps", "dc-steps", "one-cycle"] = Field(
        description="Factor on the rate by epoch (diver.students.protocol.SCHEDULES)."
    )
    augmentation: str = Field(description="DSA families joined by '_', 'idc', 'rded', 'fkd', or 'none'.")
    patches: Whole | None = Field(
        None,
        ge=1,
        description="Of 'rded': pieces along a side, which are shuffled; crops are of at least 1/patches of the area. "
        "Left out: as its scripts, 1 (the whole image) up to 64 pixels, 2 above.",
    )
    mix: Literal["none", "cutmix", "mixup"] = Field("none", description="Mixing of the images of a batch.")
    mix_alpha: float = Field(1.0, gt=0, description="Both parameters of the mixing weight's beta distribution.")
    mix_probability: float = Field(1.0, ge=0, le=1, description="Probability that a batch is mixed.")
    labels: Literal["hard", "soft", "own", "teacher", "replay"] = Field(
        "hard",
        description="hard: the class. soft: softmax of the set's own logits. own: soft where a set has them, or hard. "
        "teacher: a teacher's answer to the augmented batch. replay: the same, stored once with its crops, flips and "
        "mixes and shared by all students.",
    )
    temperature: float = Field(1.0, gt=0, description="Divides the logits of teacher and student.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Decay of averaged weights, which are then tested; 0: none.")
    evaluations: Whole = Field(10, ge=1, description="Equally spaced tests, the last after training; their best peeks.")
    test_every: Whole | None = Field(None, ge=1, description="Test every so many epochs instead, and at the end.")
    test_after: float = Field(0.0, ge=0, lt=1, description="With test_every: part of the epochs before the first.")
    test_offset: Whole = Field(0, ge=0, description="With test_every: epochs by which the tests come later.")
    reported: Literal["last", "best"] = Field("last", description="Which accuracy the protocol's papers report.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of training and testing. fp32 on a GPU is torch's own, which has convolutions in TF32.",
    )
    ema_per_epoch: bool = Field(False, description="Quirk: weights are averaged once an epoch, not once a step.")
    extra_epoch: bool = Field(False, description="Quirk: one more epoch than said.")
    momentum_reset: bool = Field(False, description="Quirk: momentum starts anew where the rate steps down.")
    double_forward: bool = Field(
        False, description="Quirk: an extra pass in training mode, which updates batch statistics twice a step."
    )
    by_classes: dict[int, dict[str, Any]] = Field(
        {}, description="Departures for datasets with at least so many classes; the largest such number counts."
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        name = given.get("name", "glad-eval")
        if name not in PRESETS:
            raise ValueError(f"unknown protocol {name!r}; {nearest(str(name), list(PRESETS))}")
        return {**under(PRESETS[name], given), **given}

    @field_validator("augmentation")
    @classmethod
    def _augmentation(cls, name: str) -> str:
        check_augmentation(name)
        return name

    @field_validator("epochs", "batch")
    @classmethod
    def _positive(cls, value: ByIpc) -> ByIpc:
        numbers = [value] if isinstance(value, int) else [*value, *value.values()]
        if not numbers or any(number is not None and number < 1 for number in numbers):
            raise ValueError("every number must be at least 1")
        return value

    @field_validator("learning_rate")
    @classmethod
    def _rates(cls, rates: dict[str, float]) -> dict[str, float]:
        valid = ["other", *FAMILIES]
        lines = [f"unknown kind of network {name!r}; {nearest(name, valid)}" for name in rates if name not in valid]
        lines += [f"{name}: a rate must be above 0 (given: {rate:g})" for name, rate in rates.items() if not rate > 0]
        if "other" not in rates:
            lines.append("give 'other' too, the rate of the networks that are not named")
        if lines:
            raise Faults(lines)
        return rates

    @field_validator("by_classes")
    @classmethod
    def _numbers(cls, value: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Keys that JSON has turned into text are numbers again."""

        def numbers(given: Any) -> Any:
            return {int(ipc): number for ipc, number in given.items()} if isinstance(given, dict) else given

        return {
            classes: {key: numbers(v) if key in ("epochs", "batch") else v for key, v in changes.items()}
            for classes, changes in value.items()
        }

    @model_validator(mode="after")
    def _departures(self) -> "Protocol":
        lines = []
        for number, changes in self.by_classes.items():
            try:
                Protocol.model_validate({**self.model_dump(), "by_classes": {}, **changes})
            except ValidationError as error:
                lines += [f"by_classes.{number}.{line}" for line in fault_lines(error, Protocol)]
        if lines:
            raise Faults(lines)
        return self

    @model_validator(mode="after")
    def _white(self) -> "Protocol":
        if self.zca and (self.needs_teacher() or (self.augmentation in VIEWS and self.augmentation != "none")):
            raise ValueError(
                "zca: white images are for hard or soft labels of the set and DSA's families as augmentation, not for "
                f"labels {self.labels!r} and augmentation {self.augmentation!r}; set zca: false"
            )
        return self

    def needs_teacher(self) -> bool:
        return self.labels in ("teacher", "replay")

    def at(self, classes: int) -> "Protocol":
        """The protocol for a dataset with so many classes.

        What a study departs in from the named protocol holds whatever the classes, unless it gives `by_classes` itself.
        """
        fitting = [number for number in self.by_classes if number <= classes]
        changes = self.by_classes[max(fitting)] if fitting else {}
        return Protocol.model_validate({**self.model_dump(), "by_classes": {}, **changes})

    def rate_for(self, network: str) -> float:
        """Peak rate of a network."""
        return self.learning_rate.get(family(network), self.learning_rate["other"])

    def departures(self, classes: int) -> str:
        """'key=value; ...' where this differs from the named protocol for so many classes; '' if it does not."""
        own, named = (one.at(classes).model_dump() for one in (self, protocol(self.name)))
        return "; ".join(f"{key}={value}" for key, value in own.items() if value != named[key])

    def quirks(self) -> str:
        """Names of the quirks that are on, joined by '; '."""
        return "; ".join(name for name in QUIRKS if getattr(self, name))


def protocol(name: str = "glad-eval", **departures: Any) -> Protocol:
    """A named protocol, with departures from it. Raises pydantic's ValidationError, as a study does."""
    return Protocol.model_validate({"name": name, **departures})


def under(settings: dict[str, Any], given: Container[str]) -> dict[str, Any]:
    """Settings for others to be put over: what is given holds whatever the number of classes and the learned rate."""
    by_classes = {
        number: {key: value for key, value in changes.items() if key not in given}
        for number, changes in settings.get("by_classes", {}).items()
    }
    learned = settings.get("learned_rate", False) and "learning_rate" not in given
    return {**settings, "by_classes": by_classes, "learned_rate": learned}


def family(network: str) -> str:
    """Kind of a network, as rates are given for: 'vgg' of 'vgg-11' and of 'timm:vgg11_bn'; 'other' if it is none."""
    name = NETWORKS[network][0] if network in NETWORKS else network
    # timm marks weights of TensorFlow so.
    name = name.split(":")[-1].removeprefix("tf_")
    kinds = [kind for kind in FAMILIES if name.startswith(kind)]
    return max(kinds, key=len) if kinds else "other"


def by_ipc(value: ByIpc, ipc: int, key: str) -> int:
    """The number for an IPC: that of the smallest bound that is not below it. Raises ValueError if there is none."""
    if isinstance(value, int):
        return value
    bounds = [bound for bound in value if bound >= ipc]
    number = value[min(bounds)] if bounds else None
    if number is None:
        known = ", ".join(str(bound) for bound, one in value.items() if one is not None)
        raise ValueError(
            f"{key}: no entry for IPC {ipc} (there is one for {known}); give a number for all, or {{IPC: number}} with "
            "one for each"
        )
    return number


QUIRKS = ("ema_per_epoch", "extra_epoch", "momentum_reset", "double_forward")

_DSA = "color_crop_cutout_flip_scale_rotate"
_UP = 10**9
# RDED's code has no batch for an IPC between these.
_RDED_BATCH = {1: 10, 9: None, 10: 50, 49: None, 50: 100}
_D3HR_BATCH: dict[int, int | None] = {9: 15, 49: 50, _UP: 100}
# What D3HR's evaluation took from RDED's.
_SOFT: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "decay_vectors": False,
    "learning_rate": {
        "other": 0.001,
        "vgg": 0.0005,
        "efficientnet": 0.002,
        "mobilenet": 0.0025,
        "alexnet": 0.0001,
        "vit": 0.0001,
        "swin": 0.0001,
    },
    "schedule": "half-cosine",
    "mix": "cutmix",
    "labels": "teacher",
    "temperature": 20,
    "reported": "best",
    "double_forward": True,
}


def _twice(batches: dict[int, int | None]) -> dict[int, int | None]:
    return {ipc: batch and 2 * batch for ipc, batch in batches.items()}


# The evaluation of DC's released code, whose loop runs one epoch more than it says.
_DC: dict[str, Any] = {
    "batch": 256,
    "learning_rate": {"other": 0.01},
    "schedule": "dc-steps",
    "evaluations": 1,
    "learned_rate": True,
    "extra_epoch": True,
    "momentum_reset": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    # GLaD (Cazenavette et al. 2023) as PReDD and DIVER use it: averaged weights are tested once, after the last epoch.
    "glad-eval": {
        "epochs": 1000,
        "batch": 256,
        "learning_rate": {"other": 0.001, "vgg": 0.0001, "efficientnet": 0.01, "mobilenet": 0.01, "shufflenet": 0.01},
        "schedule": "glad",
        "augmentation": _DSA,
        "ema_decay": 0.995,
        "ema_per_epoch": True,
        "evaluations": 1,
    },
    # IDC's evaluation as Minimax Diffusion, VLCP and EDITS use it: the best of a hundred looks at the test images.
    "hard-idc": {
        "epochs": {1: 3000, 10: 2000, 50: 1500, 200: 1000, 500: 500, _UP: 300},
        "batch": 64,
        "learning_rate": {"other": 0.01},
        "schedule": "idc-steps",
        "augmentation": "idc",
        "mix": "cutmix",
        "evaluations": 100,
        "reported": "best",
        "by_classes": {
            # Two thirds of the epochs, rounded down to hundreds; with more classes another rate, decay and batch.
            100: {"epochs": {1: 2000, 10: 1300, 50: 1000, 200: 600, 500: 300, _UP: 200}},
            101: {"learning_rate": {"other": 0.1}, "weight_decay": 1e-4, "batch": 128},
        },
    },
    # RDED (Sun et al. 2024): a teacher answers every mixed batch, the rate ends at half its peak.
    "soft-rded": {
        **_SOFT,
        "epochs": 300,
        "batch": _RDED_BATCH,
        "augmentation": "rded",
        "test_every": 10,
        "test_after": 0.8,
        "by_classes": {
            100: {"batch": _twice(_RDED_BATCH)},
            # Tiny ImageNet.
            200: {"batch": 100},
            1000: {"batch": _twice(_RDED_BATCH)},
        },
    },
    # D3HR (Zhao et al. 2025) after RDED: its own views, batches and epochs, which are fewer for Tiny ImageNet and up.
    "soft-d3hr": {
        **_SOFT,
        "epochs": 400,
        "batch": _D3HR_BATCH,
        "augmentation": "fkd",
        "test_every": 1,
        "test_after": 0.975,
        "by_classes": {
            100: {"batch": _twice(_D3HR_BATCH)},
            101: {"epochs": 300, "test_after": 290 / 300},
        },
    },
    # SRe2L (Yin et al. 2023) and D4M, after FKD (Shen and Xing 2022): stored answers of a teacher are replayed.
    "soft-fkd": {
        "epochs": 300,
        "batch": 1024,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "decay_vectors": False,
        "learning_rate": {"other": 0.001},
        "schedule": "cosine",
        "augmentation": "fkd",
        "mix": "cutmix",
        "labels": "replay",
        "temperature": 20,
        "test_every": 10,
        "test_offset": 1,
        "reported": "best",
    },
    # DSA (Zhao and Bilen 2021), DM, MTT, whose sets of white images are for white test images.
    "dc-eval": {**_DC, "epochs": 1000, "augmentation": _DSA, "zca": True},
    # DC (Zhao et al. 2021), and the coresets that it compares with.
    "dc-eval-plain": {**_DC, "epochs": 300, "augmentation": "none"},
    # Not of the literature: a whole training set in few epochs, for the ceiling of the tables and for teachers.
    "full-data": {
        "epochs": 10,
        "batch": 128,
        "learning_rate": {"other": 0.05, "vit": 0.02},
        "schedule": "one-cycle",
        "augmentation": "crop_flip",
        "evaluations": 1,
    },
}
