"""How far bf16 moves the gradients that DC and MTT match, beside what moves them anyway.

    python benchmarks/precision.py --prepared data/prepared/cifar10.safetensors --experts results/reproduce/experts-zca

DC: the gradient of each class's real images with respect to each weight that is compared, in a fresh network and in one
that was trained on ten real images of each class; from float64's, and from that of other images of the class.

MTT, if there are experts: the gradient of the images, from float64's and from that under other augmentations. One real
image of each class, white if the experts saw white ones; students start from the first expert's first weights and are
matched to those after two epochs, in MTT's published 50 steps at IPC 1.
"""

import argparse
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from diver.config.distill import DCConfig
from diver.data.prepared import Prepared
from diver.distill import dc
from diver.distill.base import class_members, first_images, standard_range
from diver.distill.experts import Experts
from diver.distill.mtt import matching_loss
from diver.distill.trajectory import augmented, draw_steps, trajectory_gradient
from diver.networks.augment import DSA
from diver.networks.convnet import ConvNet

STEPS, EPOCHS, RATE = 50, 2, 0.01
# Of DC: real images of a class, epochs of the trained network.
IMAGES, TRAINED = 128, 50


def apart(found: Tensor, wanted: Tensor) -> float:
    """|| found - wanted || in percent of || wanted ||."""
    return float(100 * (found.double() - wanted.double()).norm() / wanted.double().norm())


def of_dc(data: Prepared) -> None:
    classes, generator = len(data.classes), torch.Generator().manual_seed(0)
    members = class_members(data, 10)
    channels, size = data.train_images.shape[1:3]
    network = dc.fresh_network(DCConfig(), classes, channels, size, seed=1)
    _of_dc("a fresh network", data, network, members, generator)
    few, labels = first_images(data, 10, "real", members, generator), torch.arange(classes).repeat_interleave(10)
    for _ in range(TRAINED):
        dc.train_epoch(network, DSA("none"), few, labels, DCConfig(), generator)
    _of_dc(f"after {TRAINED} epochs", data, network, members, generator)


def _of_dc(title: str, data: Prepared, network: ConvNet, members: list[Tensor], generator: torch.Generator) -> None:
    exact = deepcopy(network).double()

    def gradients(images: Tensor, label: int, network: ConvNet, precision: str = "fp32") -> list[Tensor]:
        weights = list(dc.matched_weights(network, "channels").values())
        return dc.mean_gradients(network, weights, images, torch.full((len(images),), label), precision)

    found: dict[str, list[float]] = {"float32": [], "bf16": [], "other images": []}
    for label, own in enumerate(members):
        rows = own[torch.randperm(len(own), generator=generator)[: 2 * IMAGES]]
        images, others = data.standardised(data.train_images[rows]).chunk(2)
        wanted = gradients(images.double(), label, exact)
        for name, of in {
            "float32": gradients(images, label, network),
            "bf16": gradients(images, label, network, "bf16"),
            "other images": gradients(others.double(), label, exact),
        }.items():
            found[name] += map(apart, of, wanted)
    print(f"DC, {title}: {', '.join(f'{k} {min(v):.2g} to {max(v):.2g} %' for k, v in found.items())}", flush=True)


def of_mtt(data: Prepared, experts: Experts, seeds: int) -> None:
    augment, classes = DSA(), len(data.classes)
    experts.require(data, EPOCHS, "mtt")
    members = class_members(data, 1)
    real = first_images(data, 1, "real", members, torch.Generator().manual_seed(0))
    if experts.zca:
        real = experts.zca.whiten(standard_range(data).to_unit(real))

    def gradient(seed: int, dtype: torch.dtype, half: bool = False) -> Tensor:
        steps = draw_steps(classes, STEPS, None, augment, torch.Generator().manual_seed(seed))
        images, targets = real.to(dtype).requires_grad_(), torch.eye(classes, dtype=dtype)
        start, target = (experts.weights(0, epoch).to(dtype) for epoch in (0, EPOCHS))
        network = experts.network.with_precision("bf16" if half else "fp32")
        training = augmented(network, augment, images, targets.__getitem__, steps)
        final, rate = partial(matching_loss, start=start, target=target), torch.tensor(RATE, dtype=dtype)
        return trajectory_gradient(start, training, STEPS, rate, [images], final).leaves[0]

    exact = [gradient(seed, torch.float64) for seed in range(seeds)]
    for seed, wanted in enumerate(exact):
        found = {
            "float32": gradient(seed, torch.float32),
            "bf16": gradient(seed, torch.float32, half=True),
            "other augmentations": exact[seed - 1],
        }
        distances = (f"{name} {apart(of, wanted):.1f} %" for name, of in found.items())
        print(f"MTT, augmentations {seed}: {', '.join(distances)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True, help="the prepared dataset")
    parser.add_argument("--experts", help="folder of experts that were trained on it, for MTT")
    parser.add_argument("--seeds", type=int, default=2, help="sets of augmentations, of MTT")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: two at least, as augmentations are compared with others")
    torch.set_num_threads(options.threads)
    data = Prepared.read(options.prepared)
    of_dc(data)
    if options.experts:
        of_mtt(data, Experts.open(options.experts), options.seeds)


if __name__ == "__main__":
    main()
