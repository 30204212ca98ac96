"""What a network asks of whoever trains it: memory, batches that stay together, random numbers."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def _left_as_it_was(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers of the network and the global generators are afterwards what they were."""
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def couples_images(network: nn.Module) -> bool:
    """Whether an image's output depends on the other images of its batch (batch normalisation)."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def activation_bytes(network: nn.Module, image: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, per image; `image` is float32 [1, C, H, W].

    Counted in training mode, where dropout keeps its masks, and of two images, as batch statistics want more than one
    value. The network and the global generators are left as they were.
    """
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def count(tensor: Tensor) -> None:
        # Returns nothing to keep: a tensor would keep the graph, and with it what it was made on, for ever. They live
        # until all are counted, or one would take the place, and the address, of another.
        alive.append(tensor)
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = max(tensor.numel() * tensor.element_size(), kept.get(tensor.data_ptr(), 0))

    training = network.training
    network.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing)
    with _left_as_it_was(network, image.device), hooks:
        network(image.repeat(2, 1, 1, 1))
    network.train(training)
    return -(-sum(kept.values()) // 2)


def draws(network: nn.Module, image: Tensor) -> bool:
    """Whether a training pass of a network takes random numbers of the device (dropout); float32 image [1, C, H, W]."""

    def state() -> Tensor:
        return torch.cuda.get_rng_state(image.device) if image.is_cuda else torch.get_rng_state()

    with _left_as_it_was(network, image.device), torch.no_grad():
        before = state()
        network(image.repeat(2, 1, 1, 1))
        return not torch.equal(state(), before)
