"""Settings of the evaluation: which students are trained, and how."""

from typing import Any, Literal

from pydantic import Field

from diver.config.base import Model


class Protocol(Model):
    """GLaD's evaluation (Cazenavette et al. 2023): SGD, warm-up then cosine, DSA, averaged weights, last accuracy."""

    name: Literal["glad-eval"] = Field("glad-eval", description="Name of the protocol, recorded with each result.")
    epochs: int | dict[int, int] = Field(1000, description="Passes over the set; one number, or one per IPC.")
    batch: int = Field(256, ge=1, description="Images per step; a set that is smaller is one batch.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay.")
    warmup_fraction: float = Field(0.5, ge=0, lt=1, description="First part of the epochs, of linear warm-up.")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="Decay of the averaged weights, which are tested.")
    ema_warmup: bool = Field(
        False, description="Bound the decay by (1 + step) / (10 + step), so that short schedules forget their start."
    )
    augmentation: str = Field(
        "color_crop_cutout_flip_scale_rotate", description="DSA families, joined by '_'; 'none' switches it off."
    )
    evaluations: int = Field(10, ge=1, description="Equally spaced tests, the last after training; their best peeks.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of training and testing.")

    def epochs_at(self, ipc: int) -> int:
        return self.epochs if isinstance(self.epochs, int) else self.epochs[ipc]


class Architecture(Model):
    """A student network."""

    network: str = Field(description="Name in the registry of networks, or 'timm:NAME'.")
    label: str = Field(description="Name in tables and figures.")
    role: Literal["proxy", "unseen"] = Field("unseen", description="proxy: used in distillation; not in the mean.")
    learning_rate: float = Field(0.01, gt=0, description="Peak learning rate.")
    options: dict[str, Any] = Field({}, description="Options of the network, such as width and depth.")


class Students(Model):
    """The evaluation of every set."""

    protocol: Protocol = Field(Protocol(), description="How a student is trained and tested.")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="One student per seed.")
    architectures: dict[str, Architecture] = Field(description="Students by short name.")
    together: bool = Field(
        False,
        description="Train all architectures of a set in one job. Worth it when a student takes seconds, as importing "
        "torch does; otherwise a job per architecture is finer to schedule and to resume.",
    )
    as_published: dict[str, list[str]] = Field(
        {},
        description="Stage-2 entries by stage-1 entry whose sets are trained a second time as the published evaluation "
        "does: stored values unconverted beside standardised test images.",
    )
