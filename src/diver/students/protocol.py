"""How one student is trained and tested, and what is recorded of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from diver.config.protocols import Protocol, by_ipc
from diver.networks.augment import DEFAULT

# The warm-up starts from this fraction of the peak learning rate (Cazenavette et al. 2023, released evaluation).
FIRST_FACTOR = 1e-7


def glad(epoch: int, epochs: int) -> float:
    """Linear warm-up over half of the epochs, then cosine, as the released loop chains the two.

    The second schedule takes over an epoch late, so the peak lasts two epochs and the end is not quite zero.
    """
    half = epochs // 2
    if epoch < half:
        return FIRST_FACTOR + (1 - FIRST_FACTOR) * epoch / half
    return 0.5 * (1 + math.cos(math.pi * max(0, epoch - half - 1) / max(1, half)))


def cosine(epoch: int, epochs: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def half_cosine(epoch: int, epochs: int) -> float:
    """RDED's: half a cosine, which ends at half of the peak."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


def idc_steps(epoch: int, epochs: int) -> float:
    return 0.2 ** sum(epoch >= bound for bound in (2 * epochs // 3, 5 * epochs // 6))


def dc_steps(epoch: int, epochs: int) -> float:
    """A tenth after the epoch numbered half of the epochs plus one."""
    return 0.1 if epoch > epochs // 2 + 1 else 1.0


def one_cycle(epoch: int, epochs: int) -> float:
    """Linear up over the first quarter of the epochs, linear down over the rest; neither end is zero."""
    peak = max(1, epochs // 4)
    return (epoch + 1) / (peak + 1) if epoch < peak else (epochs - epoch) / (epochs - peak)


# Factor on the peak learning rate in epoch 0, 1, ... of so many.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "glad": glad,
    "cosine": cosine,
    "half-cosine": half_cosine,
    "idc-steps": idc_steps,
    "dc-steps": dc_steps,
    "one-cycle": one_cycle,
}


@dataclass(frozen=True)
class StudentProtocol:
    """A protocol at one IPC, for one dataset and one network. The fields are those of `config.protocols.Protocol`."""

    epochs: int
    learning_rate: float
    batch: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    schedule: str = "glad"
    augmentation: str = DEFAULT
    patches: int | None = None
    mix: str = "none"
    mix_alpha: float = 1.0
    mix_probability: float = 1.0
    labels: Literal["hard", "soft", "teacher", "replay"] = "hard"
    temperature: float = 1.0
    ema_decay: float = 0.995
    evaluations: int = 1
    test_every: int | None = None
    test_after: float = 0.0
    test_offset: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_per_epoch: bool = False
    extra_epoch: bool = False
    momentum_reset: bool = False
    double_forward: bool = False

    @property
    def passes(self) -> int:
        """Epochs that are run."""
        return self.epochs + self.extra_epoch

    def rate(self, epoch: int) -> float:
        """Learning rate of epoch 0, 1, ...; constant within an epoch."""
        return self.learning_rate * SCHEDULES[self.schedule](epoch, self.epochs)

    def decay(self, update: int) -> float:
        """Decay of the averaged weights at update 0, 1, ...: a plain mean of all weights until `ema_decay` is reached.

        This is the default of the library that GLaD's evaluation averages with: its k-th value is k / (k + 1).
        """
        return min(self.ema_decay, update / (update + 1))

    def tested_epochs(self) -> list[int]:
        """Numbers of completed epochs after which the student is tested, the last one included."""
        last = self.passes
        if self.test_every is None:
            count = min(self.evaluations, last)
            return [last * (i + 1) // count for i in range(count)]
        first = self.epochs * self.test_after + 1
        regular = range(self.test_every if not self.test_offset else self.test_offset, last, self.test_every)
        return sorted({*(e for e in regular if e > first or not self.test_after), last})


def student_protocol(
    protocol: Protocol, network: str, ipc: int, classes: int, learning_rate: float | None = None
) -> StudentProtocol:
    """The protocol at an IPC, for a dataset of so many classes and a network.

    learning_rate: instead of the protocol's for that network. Raises ValueError for an IPC without an entry.
    """
    chosen = protocol.at(classes)
    skipped = {"name", "by_classes", "reported", "epochs", "batch", "learning_rate", "learned_rate", "zca"}
    return StudentProtocol(
        **chosen.model_dump(exclude=skipped),
        epochs=by_ipc(chosen.epochs, ipc, "epochs"),
        batch=by_ipc(chosen.batch, ipc, "batch"),
        learning_rate=chosen.rate_for(network) if learning_rate is None else learning_rate,
    )


@dataclass(frozen=True)
class StudentResult:
    """One trained student. Accuracies are percentages of the test images.

    `accuracy_last` is of the tested weights (averaged ones, if the protocol averages) after the last epoch.
    `accuracy_best` is the largest over all tested epochs and thereby looks at the test set. A student whose loss
    or weights stopped being finite is `diverged`: its training ended there and its accuracy is that of the weights as
    they then stood. `seconds` is wall time, not reproducible.
    """

    seed: int
    accuracy_last: float
    accuracy_best: float
    train_loss_last: float
    diverged: bool
    epochs: int
    steps: int
    seconds: float
    parameters: int
