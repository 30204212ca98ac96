"""Settings of the evaluation: which students are trained, and by which protocol (`config.protocols`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from diver.config.augment import VIEWS
from diver.config.base import Model, Seed
from diver.config.mending import Faults
from diver.config.networks import check_network, check_options
from diver.config.protocols import Protocol, protocol


def _check_options(network: str, options: dict[str, Any]) -> None:
    try:
        check_options(network, options)
    except Faults as found:
        raise Faults([f"options.{line}" for line in found.lines]) from None


def _different(seeds: list[int]) -> list[int]:
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seed {', '.join(map(str, twice))} is given twice, which is the same student again")
    return seeds


# No two are the same student.
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_different)]


def of_whole_set(chosen: Protocol) -> Protocol:
    """The protocol if it is one for the whole training set; else ValueError with the remedy."""
    if chosen.labels != "hard":
        raise ValueError(
            f"labels {chosen.labels!r} of {chosen.name}: the training set has classes alone, and no teacher answers "
            "here; set labels: hard"
        )
    if chosen.zca:
        raise ValueError(f"zca of {chosen.name}: white images are for sets that were learned on such; set zca: false")
    return chosen


# For the whole training set.
HardProtocol = Annotated[Protocol, AfterValidator(of_whole_set)]


class Architecture(Model):
    """A student network."""

    network: str = Field(description="Name of a network or of a published preset, 'timm:NAME' or 'torchvision:NAME'.")
    label: str = Field(description="Name in tables and figures.")
    role: Literal["proxy", "unseen"] = Field("unseen", description="proxy: used in distillation; not in the mean.")
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; the protocol's when left out.")
    options: dict[str, Any] = Field({}, description="Options of the network, such as width and depth.")

    @field_validator("network")
    @classmethod
    def _known(cls, name: str) -> str:
        check_network(name)
        return name

    @model_validator(mode="after")
    def _has_options(self) -> Self:
        _check_options(self.network, self.options)
        return self


class Teacher(Model):
    """The network that answers in the soft-label protocols and that encodes images for coresets."""

    source: str = Field(
        "trained", description="'trained' by the workflow, a file of weights, or 'timm:NAME' with timm's weights."
    )
    network: str | None = Field(None, description="Its network; not needed when the source says it.")
    options: dict[str, Any] = Field({}, description="Options of the network.")
    protocol: HardProtocol = Field(protocol("full-data"), description="How it is trained on the whole training set.")
    seed: Seed = Field(0, description="Seed of its weights and batches.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "trained" and self.network is None:
            raise ValueError("network: say which network the teacher is, or give its weights by source")
        if self.network is not None:
            check_network(self.network)
            _check_options(self.network, self.options)
        return self


class FullData(Model):
    """The ceiling of the tables: the same students on the whole training set."""

    protocol: HardProtocol = Field(protocol("full-data"), description="A protocol that a whole training set bears.")
    seeds: Seeds | None = Field(None, description="Seeds; the students' when left out.")
    learning_rate: dict[str, float] = Field({}, description="Peak rate by architecture, instead of the protocol's.")


class Students(Model):
    """The evaluation of every set."""

    protocol: Protocol = Field(protocol(), description="How a student is trained and tested.")
    seeds: Seeds = Field([0, 1, 2, 3, 4], description="One student per seed.")
    architectures: dict[str, Architecture] = Field(description="Students by short name.")
    full_data: FullData | None = Field(None, description="Train the students on all training images too.")
    replay_seed: Seed = Field(42, description="Seed of the views that a teacher answers once for all (labels: replay).")
    threads: int = Field(1, ge=1, description="Students of a job that are trained at the same time, a core each.")
    memory_gb: float = Field(
        8.0, gt=0, description="Bound on a job's memory for students; fewer are trained at a time where they exceed it."
    )
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

    @field_validator("protocol")
    @classmethod
    def _storable(cls, chosen: Protocol) -> Protocol:
        if chosen.labels == "replay" and chosen.augmentation not in VIEWS:
            raise ValueError(f"labels 'replay' stores views, so augmentation must be one of {', '.join(VIEWS)}")
        return chosen


class StudentsDeparture(Model):
    """How the evaluation differs for one dataset; what is left out is the study's."""

    protocol: Protocol | None = Field(None, description="How a student is trained and tested.")
    seeds: Seeds | None = Field(None, description="One student per seed.")
    architectures: dict[str, Architecture] | None = Field(None, description="Students by short name.")
    as_published: dict[str, list[str]] | None = Field(None, description="As of the study's students.")
    full_data: bool = Field(True, description="Whether the study's `full_data` is for this dataset too.")
