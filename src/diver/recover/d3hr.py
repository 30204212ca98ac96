"""D3HR (ICML 2025): a class as a normal distribution of its inverted latents, and the group that matches it best.

Preparation: every latent z0 of a class runs up the chain by DDIM inversion (`invert`) with classifier-free guidance,

    z_b = sqrt(a_b / a_a) (z_a - sqrt(1 - a_a) eps(z_a, b, c)) + sqrt(1 - a_b) eps(z_a, b, c),

to level K, where the states of a class are about normal; their mean and variance per dimension are all that is kept.
Synthesis: of many groups of IPC vectors from N(mu, diag sigma^2) the one with the best moments (`choose_group`), and
from each of its vectors the sampler's DDIM chain from level K down to clean, with the same guidance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diver.config.native.d3hr import D3HRConfig
from diver.data.prepared import Prepared
from diver.prior.base import Prior
from diver.progress import Progress
from diver.recover.base import denoiser
from diver.recover.groups import Weights, choose_group
from diver.recover.inversion import invert
from diver.recover.latents import Latents
from diver.recover.moments import ClassStatistics, RunningMoments, StatisticsError
from diver.recover.native import make_images, native_set
from diver.recover.sampler import KeyedNoise, run_chain
from diver.sets import DistilledSet
from diver.tensorfile import TensorFileError, canonical_json, read_tensors, tensors_digest, write_tensors

# Kurtosis, as a measure of normality, needs as many.
FEWEST = 4


class _ClassRun:
    """The moments of one class, on disk after every batch, so that a run that was killed loses at most one."""

    def __init__(self, shape: tuple[int, int], device: torch.device, path: Path | None, key: str):
        self.moments = RunningMoments.of_shape(*shape, device=device)
        self.path, self.key = path, key
        if path is None:
            return
        try:
            tensors, header = read_tensors(path)
        except TensorFileError:
            return
        if header.get("key") == key:
            placed = {name: tensor.to(device) for name, tensor in tensors.items()}
            self.moments = RunningMoments(**placed, count=header["count"])

    def add(self, values: Tensor) -> None:
        self.moments.add(values)
        if self.path is not None:
            write_tensors(self.path, self.moments.tensors(), {"key": self.key, "count": self.moments.count})


def inverted_members(latents: Latents, c: int, config: D3HRConfig) -> Tensor:
    """The clean latents of a class that are inverted, float32 [n, c, h, w]. Raises StatisticsError for too few."""
    members = latents.of(c)
    if config.images_per_class is not None and config.images_per_class < len(members):
        generator = torch.Generator().manual_seed(config.seed + c)
        members = members[torch.randperm(len(members), generator=generator)[: config.images_per_class].sort().values]
    if len(members) < FEWEST:
        raise StatisticsError(f"class {c} has {len(members)} latents; statistics of a class take {FEWEST}")
    return members


def class_statistics(
    latents: Latents,
    data: Prepared,
    prior: Prior,
    config: D3HRConfig,
    *,
    progress: Progress | None = None,
    folder: Path | None = None,
    code: str = "",
) -> ClassStatistics:
    """Statistics of all classes at `config.levels()`, a batch of latents at a time.

    `folder` keeps the moments of each class while they are taken; a run that was killed goes on there and gives the
    same result, if `code`, the digest of the code, is the same too.
    Raises StatisticsError for a class of too few latents, PriorError if the prior has no condition for a class.
    """
    schedule, levels = prior.schedule(config.respacing), config.levels()
    table = prior.class_table(data.classes, config.class_ids).to(prior.device)
    size, classes = latents.of(0)[0].numel(), range(len(data.classes))
    members = [min(end - first, config.images_per_class or end) for first, end in latents.bounds]
    settings = config.inversion()
    finished, before, moments = 0, 0, []
    for c in classes:
        mine = inverted_members(latents, c, config)
        about = [settings, prior.identity(), data.dataset, c, tensors_digest({"latents": mine}), code]
        path = None if folder is None else folder / f"class-{c:05}.safetensors"
        run = _ClassRun((len(levels), size), prior.device, path, canonical_json([*about, torch.__version__]))
        before += run.moments.count
        finished += run.moments.count
        for first in range(run.moments.count, len(mine), config.batch):
            states: dict[int, Tensor] = {}

            def keep(k: int, state: Tensor, states: dict[int, Tensor] = states) -> None:
                if k in levels:
                    states[k] = state.flatten(1)

            clean = mine[first : first + config.batch].to(prior.device)
            denoise = denoiser(prior, schedule, table[c : c + 1].expand(len(clean), *table.shape[1:]), config)
            with torch.inference_mode():
                invert(clean, schedule, denoise, levels[-1], told=config.inversion_time, observe=keep)
                run.add(torch.stack([states[k] for k in levels], dim=1))
            finished += len(clean)
            if progress is not None:
                progress(finished - before, sum(members) - before, f"images inverted, class {c},")
        moments.append(run.moments)
    return ClassStatistics.of_classes(
        moments,
        tuple(mine.shape[1:]),
        levels=tuple(levels),
        timesteps=tuple(schedule.timesteps.double()[levels].tolist()),
        respacing=config.respacing,
        classes=tuple(data.classes),
        dataset=data.dataset,
        facts={"prior": prior.name, **settings},
    )


def synthesise_d3hr(
    data: Prepared,
    ipc: int,
    prior: Prior,
    config: D3HRConfig,
    *,
    artefacts: Mapping[str, Path],
    code: str = "",
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DistilledSet:
    """One image of each vector of each class's best group; `folder` is not used.

    Raises StatisticsError for statistics that do not fit.
    """
    statistics = ClassStatistics.read(artefacts["statistics"])
    schedule = prior.schedule(config.respacing)
    if statistics.respacing != config.respacing or tuple(statistics.mean.shape[2:]) != prior.latent_shape:
        raise StatisticsError(
            f"{artefacts['statistics']}: levels of {statistics.respacing!r} and latents of "
            f"{list(statistics.mean.shape[2:])}, but the settings have {config.respacing!r} and prior {prior.name} "
            f"{list(prior.latent_shape)}; save them again"
        )
    means, stds = statistics.at(config.statistics_level(), tuple(data.classes))
    weights = Weights(config.lambda_mean, config.lambda_std, config.lambda_skew, config.skewness)
    groups, scores = [], []
    for c in range(len(data.classes)):
        mean, std = means[c].to(prior.device), stds[c].to(prior.device)
        best = choose_group(mean, std, ipc, config.candidates, weights, config.seed, c, config.shared_seed)
        groups.append(best.group.cpu())
        scores.append((best.score, best.mean_score))
        print(f"class {c}: best score {best.score:.3f}, mean {best.mean_score:.3f} of {best.candidates}", flush=True)
    starts = torch.cat(groups)

    def sample(rows: Sequence[int], condition: Tensor, noise: KeyedNoise) -> Tensor:
        start = starts[list(rows)].to(prior.device)
        return run_chain(start, schedule, denoiser(prior, schedule, condition, config), config.level, noise)

    images = make_images(data, ipc, prior, config, sample, progress)
    best_score, mean_score = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    found = {
        "statistics_level": config.statistics_level(),
        "images": list(statistics.counts),
        # Scores depend on the order of sums; so many digits do not.
        "score": float(f"{best_score:.4g}"),
        "mean_score": float(f"{mean_score:.4g}"),
    }
    return native_set(images, data, ipc, "d3hr", config, prior, code, found)
