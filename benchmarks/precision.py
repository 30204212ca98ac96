"""How far MTT's gradient of the images moves in float32 and bf16, and with other augmentations, from float64.

    python benchmarks/precision.py --experts results/reproduce/experts-zca --prepared data/prepared/cifar10.safetensors

One real image of each class, white if the experts saw white ones; students start from the first expert's first weights
and are matched to those after two epochs, in MTT's published 50 steps at IPC 1.
"""

import argparse
from functools import partial

import torch
from torch import Tensor

from diver.data.prepared import Prepared
from diver.distill.base import class_members, first_images, standard_range
from diver.distill.experts import Experts
from diver.distill.mtt import matching_loss
from diver.distill.trajectory import augmented, draw_steps, trajectory_gradient
from diver.networks.augment import DSA

STEPS, EPOCHS, RATE = 50, 2, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", required=True, help="folder of experts")
    parser.add_argument("--prepared", required=True, help="the prepared dataset that they were trained on")
    parser.add_argument("--seeds", type=int, default=2, help="sets of augmentations")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: two at least, as augmentations are compared with others")
    torch.set_num_threads(options.threads)
    data, experts, augment = Prepared.read(options.prepared), Experts.open(options.experts), DSA()
    experts.require(data, EPOCHS, "mtt")
    classes = len(data.classes)
    members = class_members(data.train_labels, classes, 1)
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
        return trajectory_gradient(start, training, STEPS, rate, [images], final).leaves[0].double()

    exact = [gradient(seed, torch.float64) for seed in range(options.seeds)]
    for seed, wanted in enumerate(exact):
        found = {
            "float32": gradient(seed, torch.float32),
            "bf16": gradient(seed, torch.float32, half=True),
            "other augmentations": exact[seed - 1],
        }
        apart = (f"{name} {100 * (of - wanted).norm() / wanted.norm():.1f} %" for name, of in found.items())
        print(f"augmentations {seed}: {', '.join(apart)}", flush=True)


if __name__ == "__main__":
    main()
