"""How a student is trained and tested, and what is recorded of it."""

import math
from dataclasses import dataclass
from typing import Literal

from diver.networks.augment import DEFAULT

# The warm-up starts from this fraction of the peak learning rate (Cazenavette et al. 2023, released evaluation).
FIRST_FACTOR = 1e-7


@dataclass(frozen=True)
class StudentProtocol:
    """GLaD's evaluation (Cazenavette et al. 2023): SGD, linear warm-up then cosine, DSA, averaged weights are tested.

    `ema_warmup` bounds the decay of the averaged weights by (1 + step) / (10 + step), without which a schedule of
    a few hundred steps would test weights that still remember their initialisation.
    """

    epochs: int
    learning_rate: float
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_fraction: float = 0.5
    ema_decay: float = 0.995
    ema_warmup: bool = True
    augmentation: str = DEFAULT
    evaluations: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"

    def rate(self, epoch: int) -> float:
        """Learning rate of epoch 0..epochs-1; constant within an epoch."""
        warmup = int(self.epochs * self.warmup_fraction)
        if epoch < warmup:
            return self.learning_rate * (FIRST_FACTOR + (1 - FIRST_FACTOR) * epoch / warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (self.epochs - warmup)))

    def decay(self, step: int) -> float:
        """Decay of the averaged weights at the update after step 0, 1, ..."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay

    def tested_epochs(self) -> list[int]:
        """Numbers of completed epochs after which the student is tested: equally spaced, the last one included."""
        count = min(self.evaluations, self.epochs)
        return [self.epochs * (i + 1) // count for i in range(count)]


@dataclass(frozen=True)
class StudentResult:
    """One trained student. Accuracies are percentages of the test images.

    `accuracy_last` is of the averaged weights after the last epoch. `accuracy_best` is the largest over all tested
    epochs and thereby looks at the test set. A student whose loss stopped being finite is `diverged`: its training
    ended there and its accuracy is that of the weights as they then stood. `seconds` is wall time, not reproducible.
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
