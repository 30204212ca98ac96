"""What a network asks of whoever trains it: memory, batches that stay together, random numbers."""

import torch
from torch import Tensor, nn


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

    training, buffers = network.training, [buffer.clone() for buffer in network.buffers()]
    network.train()
    drawing = torch.random.fork_rng(devices=[image.device] if image.is_cuda else [])
    with drawing, torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        network(image.repeat(2, 1, 1, 1))
    network.train(training)
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return -(-sum(kept.values()) // 2)


def draws(network: nn.Module, image: Tensor) -> bool:
    """Whether a training pass of a network takes random numbers of the device (dropout); float32 image [1, C, H, W]."""
    buffers = [buffer.clone() for buffer in network.buffers()]

    def state() -> Tensor:
        return torch.cuda.get_rng_state(image.device) if image.is_cuda else torch.get_rng_state()

    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), torch.no_grad():
        before = state()
        network(image.repeat(2, 1, 1, 1))
        found = not torch.equal(state(), before)
    for buffer, value in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(value)
    return found
