"""CUDA graphs acted out on the CPU: the operations of a call are noted, and repeated on the same memory.

As there, Python code runs once, and a value that is read into Python while recording is an error.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diver import graphs


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value is read while the step is recorded")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        views = [t.untyped_storage().data_ptr() in given for t in found]
        if not func.is_view:
            self.calls.append((func, args, kwargs, [None if view else t for t, view in zip(found, views, strict=True)]))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            anew = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for tensor, value in zip(out, anew, strict=True):
                if tensor is not None:
                    tensor.copy_(value)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    step()
    recorder = Recorder()
    with recorder:
        step()
    return recorder.replay


@pytest.fixture
def acted_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps are recorded on the CPU too."""
    monkeypatch.setattr(graphs, "records", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    yield
