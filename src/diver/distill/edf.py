"""Emphasizing discriminative features (EDF; Wang et al. 2025) by trajectory matching with soft labels.

Each iteration starts a student from the weights theta_t of an expert, takes `syn_steps` steps on the synthetic images
x with their soft labels softmax(y), and compares where it ends with theta_{t + expert_epochs}, per parameter:

    e = (end - theta_{t + M})^2,   d = (theta_t - theta_{t + M})^2,   loss = sum of e over K / sum of d over K .

K leaves out the share `dropped` of the parameters with the smallest e (Common Pattern Dropout). Images, label logits
and the step size are learned; the images' gradient is multiplied by activation + beta where the activation map of an
image is at least its mean, and by 1 elsewhere (Discriminative Area Enhancement). Start epochs t are drawn from a
window that grows, and soft labels begin as the experts' answers (DATM; Guo et al. 2024). Iterations with a loss above
`threshold` change nothing.

The released code never uses its `ema_decay`, and looks for classes 0, 1, ... of ImageNet in the maps whatever the
classes are; here the averaged images are returned, and maps are of the images' own classes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diver.config.distill import EDFConfig
from diver.data.prepared import Prepared
from diver.distill.base import class_members, distilled, read_teacher, standard_range
from diver.distill.cam import last_maps, smooth_grad_cam
from diver.distill.experts import Experts
from diver.distill.flat import FlatNetwork
from diver.distill.loop import Run, momentum_step
from diver.distill.recorded import RecordedTrajectory, recorded_trajectory, sent
from diver.distill.trajectory import Trajectory, augmented, draw_steps, trajectory_gradient
from diver.networks.augment import DSA, Augmentation
from diver.networks.weights import Restandardised, WeightsError
from diver.progress import Progress, reporter
from diver.sets import IMAGENET, WHITENING, DistilledSet
from diver.workers import best_device

LABEL_MOMENTUM = 0.9
# Real images per forward pass.
CHUNK = 256
# torchvision's first weights, which the released code takes its maps from.
IMAGENET_NETWORK = "resnet18.tv_in1k"

Maps = Callable[[Tensor], Tensor]


def matching_loss(end: Tensor, start: Tensor, target: Tensor, dropped: float) -> Tensor:
    """The loss of the equation, 0-d, from vectors [P]; differentiable with respect to `end`.

    int(dropped * P) parameters are left out of both sums.
    """
    errors, distances = (end - target).square(), (start - target).square()
    if left_out := int(dropped * len(errors)):
        kept = errors.detach().topk(len(errors) - left_out, sorted=False).indices
        errors, distances = errors[kept], distances[kept]
    return errors.sum() / distances.sum()


def start_bound(config: EDFConfig, number: int) -> int:
    """Iteration `number` starts before this epoch: grows linearly from first_max_start to max_start."""
    grown = int((config.max_start - config.first_max_start) * number / config.expansion_end)
    return min(config.first_max_start + grown, config.max_start)


def emphasis(maps: Tensor, beta: float, threshold: float) -> Tensor:
    """Factors of the images' gradients from activation maps [N, 1, H, W] in [0, 1], of the same shape.

    activation + beta where it is at least `threshold`, or the mean of its map if that is 0; 1 elsewhere.
    """
    least = threshold if threshold > 0 else maps.mean((2, 3), keepdim=True)
    return torch.where(maps >= least, maps + beta, 1.0)


def first_positions(
    right: Callable[[int, Tensor], Tensor], members: list[Tensor], ipc: int, experts: int, generator: torch.Generator
) -> Tensor:
    """Positions int64 [classes * ipc], class-major, of random images that an expert classifies correctly.

    right: (expert, positions [n]) -> bool [n]. The first expert chooses; another only where too few images are left.
    Raises ValueError naming the class if all experts together are right about fewer than `ipc` of its images.
    """
    chosen = []
    for c, found in enumerate(members):
        left, mine, expert = found[torch.randperm(len(found), generator=generator)], found[:0], 0
        while len(mine) < ipc and expert < experts:
            wrong = []
            for part in left.split(max(CHUNK // 4, 2 * ipc)):
                if len(mine) < ipc:
                    correct = right(expert, part).cpu()
                    mine, part = torch.cat([mine, part[correct]]), part[~correct]
                wrong.append(part)
            left, expert = torch.cat(wrong), expert + 1
        if len(mine) < ipc:
            raise ValueError(
                f"edf: the experts classify {len(mine)} training images of class {c} correctly, {ipc} are needed; "
                "train them for more epochs"
            )
        chosen.append(mine[:ipc])
    return torch.cat(chosen)


def first_labels(logits: Callable[[int], Tensor], classes: Tensor, experts: int) -> Tensor:
    """Label logits [N, K]: the mean over the experts that classify an image correctly.

    logits: expert -> [N, K]; classes: int64 [N]. Each image needs one expert at least that is right.
    """
    total, count = torch.zeros(()), torch.zeros(())
    for expert in range(experts):
        found = logits(expert)
        right = (found.argmax(1) == classes).to(found)[:, None]
        total, count = total + right * found, count + right
    # An image that was chosen for an expert that is right may miss by rounding when all are asked together.
    return total / count.clamp(min=1)


def _imagenet_network(data: Prepared) -> nn.Module:
    """timm's ResNet-18 with weights from ImageNet, for images that are standardised as the dataset's."""
    import timm  # here, because this import takes several seconds

    if (channels := data.train_images.shape[1]) != len(IMAGENET.mean):
        raise WeightsError(f"attention 'imagenet' takes images of 3 channels, not {channels}; choose 'experts'")
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(IMAGENET_NETWORK, pretrained=True)
    except OSError as error:
        raise WeightsError(
            f"attention 'imagenet': the weights of timm's {IMAGENET_NETWORK} are neither in the local cache nor to be "
            f"had ({' '.join(str(error).split())[:200]}); load them once where there is a network and copy the cache "
            "(HF_HOME), or choose attention 'experts'"
        ) from error
    return Restandardised(network, IMAGENET, standard_range(data))


def _imagenet_classes(classes: tuple[str, ...]) -> list[int] | None:
    """ImageNet's index of each class, if all are wnids."""
    from timm.data import ImageNetInfo

    index = {wnid: i for i, wnid in enumerate(ImageNetInfo().label_names())}
    return [index[name] for name in classes] if set(classes) <= set(index) else None


def attention_maps(
    config: EDFConfig, data: Prepared, ipc: int, experts: Experts, generator: torch.Generator
) -> tuple[Maps | None, str | dict[str, Any]]:
    """Class-major images [classes * ipc, C, H, W] to activation maps [classes * ipc, 1, H, W]; and what is recorded.

    The images are such as the experts see; other networks than theirs are given standardised ones. Maps are of each
    image's class; of the network's first guess if it is ImageNet's and the classes are not.
    Raises ValueError for a teacher that the workflow did not name, WeightsError for a network that cannot be had.
    """
    numbers: list[int] | None = list(range(len(data.classes)))
    described: str | dict[str, Any] = config.attention
    if config.attention == "none":
        return None, described
    if config.attention == "experts":
        network: nn.Module = experts.network.module(experts.weights(0, experts.epochs))
    elif config.attention == "imagenet":
        network, numbers = _imagenet_network(data), _imagenet_classes(data.classes)
    else:
        trained, described = read_teacher(
            "attention", config.attention, data, otherwise=", 'experts', 'imagenet' or 'none'"
        )
        network = trained.network
    device = best_device()
    network = network.to(device).eval().requires_grad_(False)
    layer = last_maps(network, torch.zeros(1, *data.train_images.shape[1:], device=device))
    classes = None if numbers is None else torch.tensor(numbers, device=device).repeat_interleave(ipc)

    def maps(images: Tensor) -> Tensor:
        if config.attention != "experts":
            images = _standardised(images, data, experts)
        return smooth_grad_cam(network, layer, images, classes, config.map_samples, config.map_noise, generator)

    return maps, described


def _standardised(white: Tensor, data: Prepared, experts: Experts) -> Tensor:
    """Images as experts see them, which are white for some, as standardised ones."""
    return white if experts.zca is None else standard_range(data).from_unit(experts.zca.restore(white))


def student_gradient(
    network: FlatNetwork,
    augment: DSA,
    images: Tensor,
    labels: Tensor,
    rate: Tensor,
    start: Tensor,
    target: Tensor,
    steps: Sequence[tuple[Tensor, Augmentation]],
    config: EDFConfig,
    recorded: RecordedTrajectory | None = None,
) -> Trajectory:
    """The loss after a student's training from `start` [P], and its gradients.

    images: [N, C, H, W]; labels: logits [N, K]; rate: 0-d, the student's learning rate; target: [P]; steps: as drawn.
    recorded: what makes the gradients of this network and `config.gradient` of recorded steps, if they are.
    `leaves` are the gradients of images and labels.
    """
    leaves, mode = [images, labels], config.gradient

    def final(end: Tensor) -> Tensor:
        return matching_loss(end, start, target, config.dropped)

    def answers(mine: Tensor) -> Tensor:
        return labels[mine].softmax(1)

    if recorded:
        return recorded(images, answers, steps, start, rate, leaves, final)
    training = augmented(network, augment, images, answers, steps)
    return trajectory_gradient(start, training, len(steps), rate, leaves, final, mode)


def distill_edf(
    data: Prepared,
    ipc: int,
    config: EDFConfig,
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """A set of `ipc` learned images per class with soft labels, both float32, the same for the same seed.

    The images are the averages over all accepted iterations, weighted by powers of `ema_decay`; the label logits
    [classes * ipc, classes] are the last. Records the student's learning rate (syn_lr), the iterations that were
    accepted, the experts with their network, and the network of the maps.
    With experts of white images, white images are learned, and what they are white images of is returned, standardised;
    as for MTT, students see what was learned only if the set is whitened again.
    progress: called with (iterations done, all iterations, the loss); by default a line on stderr now and then.
    folder: where a run that is stopped is kept to go on from, and pictures are written.
    Raises ExpertsError if the experts are missing, of other data or too short for the window; ValueError if they are
    right about too few images, if every loss was above the threshold, or as `attention_maps` does; FloatingPointError
    if the loss stops being finite or the step size positive.
    """
    experts, device = Experts.open(config.experts), best_device()
    experts.require(data, config.max_start - 1 + config.expert_epochs, "edf")
    members = class_members(data, ipc)
    generator, train = torch.Generator().manual_seed(config.seed), data.train_images.to(device)
    own = torch.arange(len(data.classes), device=device).repeat_interleave(ipc)

    def real(positions: Tensor) -> Tensor:
        found = train[positions.to(device)]
        return data.standardised(found) if experts.zca is None else experts.zca.whiten(found.float() / 255)

    def last_logits(expert: int, images: Tensor) -> Tensor:
        weights = experts.weights(expert, experts.epochs).to(device)
        with torch.no_grad():
            return torch.cat([experts.network(weights, part) for part in images.split(CHUNK)])

    def right(expert: int, positions: Tensor) -> Tensor:
        return last_logits(expert, real(positions)).argmax(1).cpu() == data.train_labels[positions]

    images = nn.Parameter(real(first_positions(right, members, ipc, experts.count, generator)))
    labels = nn.Parameter(first_labels(lambda expert: last_logits(expert, images), own, experts.count))
    rate = torch.tensor(config.syn_rate, device=device)
    # What is learned, with its learning rate and momentum.
    learned = {
        "images": (images, config.learning_rate, config.momentum),
        "labels": (labels, config.label_rate, LABEL_MOMENTUM),
        "rate": (rate, config.rate_rate, config.momentum),
    }
    velocity = {name: torch.zeros_like(variable) for name, (variable, _, _) in learned.items()}
    average, accepted = images.detach().clone(), torch.zeros((), dtype=torch.int64)
    maps, attention = attention_maps(config, data, ipc, experts, generator)
    mask, augment = torch.ones_like(images[:, :1]), DSA(config.augmentation)
    network = experts.network.with_precision(config.precision)
    recorded = recorded_trajectory(network, augment, images, config.gradient)

    def iteration(number: int) -> float:
        if maps and number % config.interval == 0:
            mask.copy_(emphasis(maps(images), config.beta, config.act_threshold))
        expert = int(torch.randint(experts.count, (), generator=generator))
        epoch = int(torch.randint(config.min_start, start_bound(config, number), (), generator=generator))
        first, target = (sent(experts.weights(expert, e), device) for e in (epoch, epoch + config.expert_epochs))
        steps = draw_steps(len(images), config.syn_steps, config.batch_syn, augment, generator)
        found = student_gradient(network, augment, images, labels, rate, first, target, steps, config, recorded)
        if (loss := found.loss.item()) <= config.threshold:
            gradients = {"images": found.leaves[0] * mask, "labels": found.leaves[1], "rate": found.rate}
            for name, (variable, speed, momentum) in learned.items():
                momentum_step(variable, gradients[name], velocity[name], speed, momentum)
            accepted.add_(1)
            # The first image has no weight of its own: all weights are (1 - decay) decay^k over their sum.
            share = (1 - config.ema_decay) / (1 - config.ema_decay ** accepted.item())
            average.lerp_(images.detach(), share)
            if rate.item() <= 0:
                raise FloatingPointError(f"edf: step size is {rate.item():.3g} at iteration {number}; lower rate_rate")
        return loss

    def shown() -> Tensor:
        return _standardised(average, data, experts)

    state = {"average": average, "accepted": accepted, "mask": mask}
    state |= {name: variable for name, (variable, _, _) in learned.items()}
    state |= {f"{name}_velocity": tensor for name, tensor in velocity.items()}
    settings = config.model_dump(mode="json", exclude={"experts"})
    about = [ipc, settings, experts.record(), data.identity(), attention, code]
    run = Run("edf", state, generator, about, folder, progress or reporter("EDF"))
    run.iterate(config.iterations, iteration, lambda: (shown(), standard_range(data), ipc))
    if not accepted:
        raise ValueError(
            f"edf: each of {config.iterations} losses was above threshold {config.threshold}, so nothing was learned; "
            "raise the threshold or lower syn_rate"
        )
    whitened = {"epsilon": experts.config.zca_epsilon, "sha256": experts.zca.digest()} if experts.zca else None
    found = {
        "syn_lr": rate.item(),
        "accepted": int(accepted),
        "experts": experts.record(),
        "attention": attention,
        WHITENING: whitened,
    }
    return distilled(shown(), data, ipc, "edf", config, code, found, labels)
