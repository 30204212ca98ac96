"""Gradient matching: dataset condensation (DC; Zhao, Mopuri and Bilen 2021), and DSA (Zhao and Bilen 2021).

Each iteration draws a network theta and goes through `outer` rounds. A round takes one SGD step on the images S for

    L(S) = sum over classes c of D(g_c(A_c(S_c)), g_c(A_c(B_c))),
    g_c(X) = mean over x in X of the gradient of CE(theta; x, c) with respect to theta,

with real images B_c of class c; between two rounds theta is trained for `inner` epochs on the augmented S. For DC
the augmentation A_c is the identity, for DSA one transformation drawn per class and round, the same for S_c and B_c.
D sums 1 - cosine over the output channels of all weights; vectors (biases, scales) are left out.

The released code draws networks and augmentations from the clock and goes through one network more than it says
(`extra_network`); here all is drawn from the seed. Images live in standardised space and are never clipped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from diver import graphs
from diver.config.distill import DCConfig, DSAConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, first_images, redraw, standard_range
from diver.distill.loop import Run, momentum_step
from diver.networks import create
from diver.networks.augment import DSA
from diver.networks.convnet import ConvNet
from diver.networks.views import apply_each
from diver.progress import Progress, reporter
from diver.sets import DistilledSet
from diver.workers import best_device

# Pixels that pass through the network together, on a CPU 128 images of 32 x 32; bounds memory.
PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}
# Added to the product of norms, as in the released code: the cosine with a gradient of zero is zero.
EPSILON = 1e-6


def fresh_network(config: DCConfig, classes: int, channels: int, size: int, seed: int) -> ConvNet:
    """A ConvNet with random weights that depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create("convnet", classes, channels, size, width=config.width, depth=config.depth)
    assert isinstance(network, ConvNet)
    return network


def matched_weights(network: ConvNet, distance: str) -> dict[str, Tensor]:
    """The parameters whose gradients are compared, by name: without vectors for the distance over channels."""
    return {name: p for name, p in network.named_parameters() if distance != "channels" or p.ndim > 1}


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / (norms + EPSILON)


def gradient_distance(found: Sequence[Tensor], wanted: Sequence[Tensor], distance: str) -> Tensor:
    """Scalar sum over classes of D between gradients, one tensor [classes, *shape] per parameter on either side.

    distance: channels (1 - cosine, summed over parameters and their output channels), or of all parameters as one
    vector mse (the squared distance) or cos (1 - cosine).
    """
    if distance == "channels":
        terms = [(1 - _cosine(a.flatten(2), b.flatten(2))).sum() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(terms).sum()
    a, b = (torch.cat([gradient.flatten(1) for gradient in side], 1) for side in (found, wanted))
    return (a - b).square().sum() if distance == "mse" else (1 - _cosine(a, b)).sum()


def _at_once(images: Tensor) -> int:
    """How many images [..., C, H, W] pass through the network together."""
    return max(1, PIXELS[images.device.type] // (images.shape[-1] * images.shape[-2]))


def mean_gradients(
    network: Callable[[Tensor], Tensor],
    weights: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    precision: str = "fp32",
) -> list[Tensor]:
    """Gradients of the mean cross entropy of images [N, C, H, W] with respect to parameters of the network.

    Passes in float32 or, with precision bf16, with products in bfloat16; the gradients are float32 either way.
    """
    total: list[Tensor] = []
    half = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    for x, y in zip(images.split(_at_once(images)), labels.split(_at_once(images)), strict=True):
        with half:
            logits = network(x)
        loss = F.cross_entropy(logits.to(images), y, reduction="sum") / len(images)
        found = torch.autograd.grad(loss, weights)
        total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else list(found)
    return total


def class_gradients(network: ConvNet, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> list[Tensor]:
    """g_c of images [classes, N, C, H, W] and their classes int64 [classes]: [classes, *shape] for each of `weights`.

    Differentiable with respect to the images only. One pass for all classes: a pass for each would wait for the
    launch of its many small operations.
    """
    fixed = {name: p.detach() for name, p in network.named_parameters()}

    def loss(varied: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**fixed, **varied}, (x,)), label.expand(len(x)))

    found = vmap(grad(loss), (None, 0, 0))({name: fixed[name] for name in weights}, images, labels)
    return list(found.values())


def matching(
    network: ConvNet,
    augment: DSA,
    real: Iterable[Tensor],
    images: Tensor,
    distance: str,
    generator: torch.Generator,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """L, a scalar, and its gradient with respect to the synthetic images [classes, ipc, C, H, W].

    real: images [N_c, C, H, W] of each class; they are asked for one class after the other.
    precision: of the passes of the real images, as in `mean_gradients`.
    """
    weights, batches = matched_weights(network, distance), iter(real)
    drawn = [augment.draw(1, generator) for _ in images]
    loss, gradient = images.new_zeros(()), torch.empty_like(images)
    together = max(1, _at_once(images) // images.shape[1])
    for first in range(0, len(images), together):
        synthetic = images[first : first + together].detach().requires_grad_()
        labels = torch.arange(first, first + len(synthetic), device=images.device)
        targets, shown = [], []
        for label, mine, own in zip(labels, drawn[first : first + together], synthetic, strict=True):
            batch = augment.apply(next(batches), mine)
            wanted = label.expand(len(batch))
            targets.append(mean_gradients(network, list(weights.values()), batch, wanted, precision))
            shown.append(augment.apply(own, mine))
        found = class_gradients(network, weights, torch.stack(shown), labels)
        part = gradient_distance(found, [torch.stack(of_class) for of_class in zip(*targets, strict=True)], distance)
        (gradient[first : first + together],) = torch.autograd.grad(part, synthetic)
        loss += part.detach()
    return loss, gradient


def _descend(network: ConvNet, passes: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, rate: float) -> None:
    """A step of gradient descent; `passes` is the network or what computes the same."""
    parameters = list(network.parameters())
    gradients = mean_gradients(passes, parameters, images, labels)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=rate)


def train_epoch(
    network: ConvNet, augment: DSA, images: Tensor, labels: Tensor, config: DCConfig, generator: torch.Generator
) -> None:
    """One epoch of SGD without momentum on images [N, C, H, W]; every image is augmented by parameters of its own."""
    for part in torch.randperm(len(images), generator=generator).to(images.device).split(config.batch_train):
        shown = augment.apply(images[part], augment.draw(len(part), generator))
        _descend(network, network, shown, labels[part], config.network_rate)


class _Recorded:
    """Rounds and epochs as recorded steps on one network, for classes with equally many real images."""

    def __init__(self, network: ConvNet, augment: DSA, images: Tensor, real: int, config: DCConfig) -> None:
        """images: [classes, ipc, C, H, W], that are learned; real: images of a class."""
        self.network, self.augment, self.config = network, augment, config
        self.real = images.new_empty(len(images), real, *images.shape[2:])
        self.shown, self.gradient = torch.empty_like(images), torch.zeros_like(images)
        self.loss, self.labels = images.new_zeros(()), torch.arange(len(images), device=images.device)
        self._fused = graphs.compiled(network, images.device)
        self._match = graphs.Graphed(self._matched, [self.gradient, self.loss], images.device)
        self._trained: dict[int, tuple[Tensor, Tensor, graphs.Graphed]] = {}

    def _matched(self) -> None:
        weights, config = matched_weights(self.network, self.config.distance), self.config
        targets = [
            mean_gradients(self._fused, list(weights.values()), own, label.expand(len(own)), config.precision)
            for own, label in zip(self.real, self.labels, strict=True)
        ]
        leaf = self.shown.detach().requires_grad_()
        found = class_gradients(self.network, weights, leaf, self.labels)
        wanted = [torch.stack(of_class) for of_class in zip(*targets, strict=True)]
        loss = gradient_distance(found, wanted, config.distance)
        self.gradient.copy_(torch.autograd.grad(loss, leaf)[0])
        self.loss.copy_(loss.detach())

    def matching(self, real: Sequence[Tensor], images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As the function of that name; what is returned changes with the next call."""
        drawn = [self.augment.draw(1, generator) for _ in images]
        leaf = images.detach().requires_grad_()
        torch.stack(apply_each(self.augment, real, drawn), out=self.real)
        shown = torch.stack(apply_each(self.augment, list(leaf), drawn))
        self.shown.copy_(shown.detach())
        self._match()
        return self.loss, torch.autograd.grad(shown, leaf, self.gradient)[0]

    def _training(self, count: int) -> tuple[Tensor, Tensor, graphs.Graphed]:
        """Images and labels of a training step, and the step."""
        if count not in self._trained:
            x, y = self.shown.new_zeros(count, *self.shown.shape[2:]), self.labels.new_zeros(count)

            def step() -> None:
                _descend(self.network, self._fused, x, y, self.config.network_rate)

            state = list(self.network.parameters())
            self._trained[count] = x, y, graphs.Graphed(step, [p.data for p in state], x.device)
        return self._trained[count]

    def train(self, images: Tensor, labels: Tensor, epochs: int, generator: torch.Generator) -> None:
        """As so many times `train_epoch`."""
        rows, drawn = [], []
        if not epochs:
            return
        for _ in range(epochs):
            for part in torch.randperm(len(images), generator=generator).split(self.config.batch_train):
                rows.append(part)
                drawn.append(self.augment.draw(len(part), generator))
        chosen = torch.cat(rows).to(images.device, non_blocking=True)
        sizes = [len(part) for part in rows]
        batches = apply_each(self.augment, images[chosen].split(sizes), drawn)
        for shown, own in zip(batches, labels[chosen].split(sizes), strict=True):
            x, y, step = self._training(len(shown))
            x.copy_(shown)
            y.copy_(own)
            step()


def _distill(
    method: str, data: Prepared, ipc: int, config: DCConfig, code: str, progress: Progress | None, folder: Path | None
) -> DistilledSet:
    """The run counts rounds, not networks: a network's rounds take minutes, and its weights are part of the state."""
    classes, (channels, size) = len(data.classes), data.train_images.shape[1:3]
    members = class_members(data, ipc if config.init == "real" else 1)
    generator, device = torch.Generator().manual_seed(config.seed), best_device()
    images = first_images(data, ipc, config.init, members, generator).to(device)
    labels = torch.arange(classes, device=device).repeat_interleave(ipc)
    velocity, augment, train = torch.zeros_like(images), DSA(config.augmentation), data.train_images.to(device)
    network = fresh_network(config, classes, channels, size, config.seed).to(device)
    outer, inner = config.loops(ipc)

    def one_round(number: int) -> float:
        start, later = divmod(number, outer)
        if later:
            for _ in range(inner):
                train_epoch(network, augment, images, labels, config, generator)
        else:
            fresh = fresh_network(config, classes, channels, size, config.seed * 1_000_003 + start)
            network.load_state_dict(fresh.state_dict())
        chosen = [own[torch.randperm(len(own), generator=generator)[: config.batch_real]] for own in members]
        real = (data.standardised(train[part.to(device)]) for part in chosen)
        by_class = images.unflatten(0, (classes, ipc))
        loss, gradient = matching(network, augment, real, by_class, config.distance, generator, config.precision)
        momentum_step(images, gradient.flatten(0, 1), velocity, config.learning_rate, config.momentum)
        return loss.item()

    def recorded_round(number: int) -> Tensor:
        """As `one_round`, but for the weights, which the device draws."""
        start, later = divmod(number, outer)
        if later:
            recorded.train(images, labels, inner, generator)
        else:
            redraw(network, config.seed * 1_000_003 + start)
        chosen = [own[torch.randperm(len(own), generator=generator)[: config.batch_real]] for own in members]
        real = data.standardised(train[torch.cat(chosen).to(device, non_blocking=True)]).split(count)
        loss, gradient = recorded.matching(real, images.unflatten(0, (classes, ipc)), generator)
        momentum_step(images, gradient.flatten(0, 1), velocity, config.learning_rate, config.momentum)
        return loss

    # Recorded steps want equally many real images of each class.
    counts = {min(config.batch_real, len(own)) for own in members}
    count, alike = min(counts), len(counts) == 1 and _at_once(images) >= len(images)
    chosen_round: Callable[[int], float | Tensor] = one_round
    if alike and graphs.records(device):
        recorded = _Recorded(network, augment, images.unflatten(0, (classes, ipc)), count, config)
        chosen_round = recorded_round
    about = [ipc, config.model_dump(mode="json"), data.identity(), code]
    state = {"images": images, "velocity": velocity, **network.state_dict()}
    run = Run(method, state, generator, about, folder, progress or reporter(method.upper()))
    run.iterate(
        (config.iterations + config.extra_network) * outer, chosen_round, lambda: (images, standard_range(data), ipc)
    )
    return distilled(images, data, ipc, method, config, code)


def distill_dc(
    data: Prepared,
    ipc: int,
    config: DCConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class, float32 in standardised space, the same for the same seed.

    A class with fewer images than `batch_real` is matched with all of them.
    progress: called with (rounds done, all rounds, the loss); by default a line on stderr now and then.
    folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ValueError if a class has fewer images than `ipc` (init: real) or none, FloatingPointError if the loss
    stops being finite.
    """
    return _distill("dc", data, ipc, config, code, progress, folder)


def distill_dsa(
    data: Prepared,
    ipc: int,
    config: DSAConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """As `distill_dc`, with siamese augmentation and by default from real images."""
    return _distill("dsa", data, ipc, config, code, progress, folder)
