"""SGD and AdamW on one flat buffer per network.

On networks this small the many tiny operations of a general optimiser are a good part of a step, and merely importing
what `torch.optim` needs takes longer than training a student on ten images. Tests hold both to `torch.optim`.
A rate that is a tensor (0-d, on the device of the weights) is for recorded steps, which cannot read a number.
"""

import torch
from torch import Tensor, nn

from diver.students.protocol import StudentProtocol

EPSILON = 1e-8


def flatten_parameters(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Move all parameters into one buffer and all gradients into another; both float [P], aliased by the network."""
    parameters = list(network.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    gradient = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data, p.grad = flat[start:end].view_as(p), gradient[start:end].view_as(p)
        start = end
    return flat, gradient


def decay_factors(network: nn.Module, vectors: bool) -> Tensor | float:
    """1 for every parameter, or, without `vectors`, float [P] with 0 for biases, normalisation and position parameters.

    The latter as RDED's and SRe2L's released loops choose: decayed is what is named a weight and is no vector.
    """
    if vectors:
        return 1.0
    parts = [
        torch.full((p.numel(),), float("weight" in name and p.ndim > 1), dtype=p.dtype, device=p.device)
        for name, p in network.named_parameters()
    ]
    return torch.cat(parts)


class SGD:
    """Momentum and L2 decay, as `torch.optim.SGD`."""

    def __init__(self, flat: Tensor, decay: Tensor | float, protocol: StudentProtocol) -> None:
        self.momentum, self.decay = protocol.momentum, decay * protocol.weight_decay
        self.state = {"velocity": torch.zeros_like(flat)}

    def step(self, flat: Tensor, gradient: Tensor, rate: float | Tensor) -> None:
        velocity = self.state["velocity"].mul_(self.momentum).add_(gradient)
        if isinstance(self.decay, float):
            velocity.add_(flat, alpha=self.decay)
        else:
            velocity.addcmul_(flat, self.decay)
        if isinstance(rate, Tensor):
            flat.addcmul_(velocity, rate, value=-1)
        else:
            flat.sub_(velocity, alpha=rate)

    def reset(self) -> None:
        """Forget the momentum."""
        self.state["velocity"].zero_()


class AdamW:
    """Decoupled decay, as `torch.optim.AdamW`."""

    def __init__(self, flat: Tensor, decay: Tensor | float, protocol: StudentProtocol) -> None:
        self.betas, self.decay = protocol.betas, decay * protocol.weight_decay
        self.state = {
            "mean": torch.zeros_like(flat),
            "square": torch.zeros_like(flat),
            "steps": torch.zeros((), dtype=torch.int64, device=flat.device),
        }

    def step(self, flat: Tensor, gradient: Tensor, rate: float | Tensor) -> None:
        mean, square = self.state["mean"], self.state["square"]
        steps = self.state["steps"].add_(1)
        flat.mul_(1 - rate * self.decay)
        mean.lerp_(gradient, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        if isinstance(rate, Tensor):
            # In double precision: small differences from one.
            of_mean, of_square = (1 - beta ** steps.double() for beta in self.betas)
            flat.sub_(mean / (square / of_square).sqrt_().add_(EPSILON) * (rate / of_mean))
            return
        count = int(steps)
        first, second = 1 - self.betas[0] ** count, 1 - self.betas[1] ** count
        flat.addcdiv_(mean, (square / second).sqrt_().add_(EPSILON), value=-rate / first)

    def reset(self) -> None:
        for tensor in self.state.values():
            tensor.zero_()


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}
