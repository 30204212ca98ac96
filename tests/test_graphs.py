"""Recorded steps repeat what was recorded, on the same memory, and recording changes nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from diver.graphs import Graphed, compiled, drawing_from, records

CPU = torch.device("cpu")


def descent(weight: torch.Tensor, x: torch.Tensor, rate: torch.Tensor, loss: torch.Tensor) -> None:
    leaf = weight.detach().requires_grad_()
    found = F.gelu(F.conv2d(x, leaf)).square().mean()
    weight.addcmul_(torch.autograd.grad(found, leaf)[0], rate, value=-1)
    loss.copy_(found.detach())


def test_replays_follow_the_tensors(acted_graphs: None) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    found = []
    for graphed in (True, False):
        weight, x = start.clone(), torch.zeros(2, 3, 8, 8, dtype=torch.float64)
        rate, loss, losses = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), []

        def step() -> None:
            descent(weight, x, rate, loss)  # noqa: B023

        run = Graphed(step, [weight, loss], CPU) if graphed else step
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            x.copy_(torch.randn(x.shape, dtype=torch.float64, generator=generator))
            rate.fill_(0.1 * number)
            run()
            losses.append(loss.item())
        found.append((losses, weight))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_a_value_read_while_recording_is_an_error(acted_graphs: None) -> None:
    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="read while"):
        Graphed(lambda: x.mul_(x.sum().item()), [x], CPU)()


def test_what_is_fused_and_recorded_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, fused = torch.device("cuda"), []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fused.append(function) or F.relu)
    for name in ("DIVER_COMPILE", "DIVER_GRAPHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CC", "cc")
    assert compiled(F.gelu, CPU) is F.gelu and compiled(F.gelu, gpu, False) is F.gelu
    assert compiled(F.gelu, gpu) is F.relu and records(gpu) and not records(CPU)
    monkeypatch.setenv("DIVER_COMPILE", "1")
    assert compiled(F.gelu, gpu, False) is F.relu
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert compiled(F.gelu, gpu) is F.gelu
    monkeypatch.setenv("DIVER_GRAPHS", "0")
    assert not records(gpu)


def test_elsewhere_the_step_is_called() -> None:
    called = []
    step = Graphed(lambda: called.append(1), [], CPU)
    step()
    step()
    assert len(called) == 2


def test_random_numbers_come_from_a_generator_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared:
        state: Any = "shared"

        def graphsafe_get_state(self) -> Any:
            return self.state

        def graphsafe_set_state(self, state: Any) -> None:
            self.state = state

    defaults, mine = (Shared(), Shared()), SimpleNamespace(device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "default_generators", defaults)
    with pytest.raises(KeyError), drawing_from(mine):  # type: ignore[arg-type]
        assert defaults[1].state is mine and defaults[0].state == "shared"
        raise KeyError
    assert [one.state for one in defaults] == ["shared", "shared"]
    with drawing_from(None):
        assert defaults[1].state == "shared"
