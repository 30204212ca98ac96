"""What goes on beside the iterations of a long run: checkpoints, resuming, progress, pictures, the loss."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diver import graphs
from diver.pictures import save_grid
from diver.progress import Progress
from diver.sets import ValueRange
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, write_tensors

SAVE_SECONDS = 60.0
PICTURES = 10
REPORTS = 100
REPORT_SECONDS = 5.0
STATE = "state.safetensors"


class Run:
    """The iterations of one run, whose state is a few tensors that each iteration changes in place.

    state: tensors by name, aliased where they live. generator: the run's only random numbers; it is part of the state.
    about: JSON that tells this run from another (settings, data, code): a checkpoint of another run is not resumed.
    folder: where the state is kept once a minute and pictures are written; None keeps nothing.
    """

    def __init__(
        self,
        method: str,
        state: Mapping[str, Tensor],
        generator: torch.Generator,
        about: Any,
        folder: str | Path | None,
        progress: Progress,
    ) -> None:
        self.method, self.state, self.generator, self.progress = method, dict(state), generator, progress
        device = next(iter(self.state.values())).device
        # Recorded steps draw weights on the device: a run that began without them does not go on with them.
        self.key = canonical_json([method, about, torch.__version__, device.type, graphs.records(device)])
        self.folder = None if folder is None else Path(folder)
        self.done = 0
        self._saved = self._reported = time.monotonic()

    def _restore(self) -> None:
        if self.folder is None:
            return
        try:
            tensors, header = read_tensors(self.folder / STATE)
        except TensorFileError:
            return
        if header.get("key") != self.key:
            done = header.get("done")
            told = f"{self.folder} holds {done} iterations of other settings, data, code, torch or device"
            print(f"{self.method}: {told}: begins anew", flush=True)
            return
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(tensors[name])
        self.generator.set_state(tensors["generator"])
        self.done = int(header["done"])
        print(f"{self.method}: goes on after iteration {self.done}", flush=True)

    def _save(self) -> None:
        assert self.folder is not None
        tensors = {**self.state, "generator": self.generator.get_state()}
        write_tensors(self.folder / STATE, tensors, {"key": self.key, "done": self.done})
        self._saved = time.monotonic()

    def iterate(
        self,
        iterations: int,
        iteration: Callable[[int], float | Tensor],
        picture: Callable[[], tuple[Tensor, ValueRange, int]] | None = None,
    ) -> None:
        """Call iteration(i), which returns the loss, for all i that are left; then the state is that of the end.

        A loss that is a tensor, 0-d, is read now and then only, as reading it waits for the device.
        picture: images [N, C, H, W], their range and the columns of their picture; one is written at the start, at
        the end and nine times between. Raises FloatingPointError naming the method if a loss is not finite.
        """
        self._restore()
        every, shown = max(1, iterations // PICTURES), max(1, iterations // REPORTS)
        if self.done == 0 and picture:
            self._picture(picture)
        while self.done < iterations:
            found = iteration(self.done)
            waited = time.monotonic() - self._reported >= REPORT_SECONDS
            reported = waited or (self.done + 1) % shown == 0 or self.done + 1 == iterations
            due = self.folder and (self.done + 1 == iterations or time.monotonic() - self._saved >= SAVE_SECONDS)
            if not isinstance(found, Tensor) or reported or due:
                loss = float(found)
                if loss - loss != 0:
                    raise FloatingPointError(
                        f"{self.method}: loss is {loss} at iteration {self.done}; lower the learning rate"
                    )
            self.done += 1
            if reported:
                self.progress(self.done, iterations, f"loss {loss:.4g}")
                self._reported = time.monotonic()
            if picture and (self.done % every == 0 or self.done == iterations):
                self._picture(picture)
            if due:
                self._save()

    def _picture(self, picture: Callable[[], tuple[Tensor, ValueRange, int]]) -> None:
        if self.folder:
            images, value_range, columns = picture()
            save_grid(self.folder / f"iteration-{self.done:06}.png", images.detach().cpu(), value_range, columns)


def momentum_step(variable: Tensor, gradient: Tensor, velocity: Tensor, rate: float, momentum: float) -> None:
    """One step of SGD with momentum in place, as torch.optim has it, whose import takes seconds."""
    with torch.no_grad():
        velocity.mul_(momentum).add_(gradient)
        variable.sub_(velocity, alpha=rate)
