"""Stage-2 recovery beside the published loop and diffusers' own sampler: time, memory, and the arithmetic floor.

Networks of DiT-XL/2 at 256 pixels with the autoencoder of Stable Diffusion, with random weights, which cost the same
time and memory as trained ones. In one run on one device:

    plain   DIVER as it is published: one image at a time in float32, both halves of guidance as a batch of two,
            diffusers' networks as they come
    raw     sampling from noise with diffusers' DiTPipeline, with as many steps and as much guidance; no image goes in
    ours    diver.recover.run.recover with the preset diver-paper; -compile: with the network's blocks compiled

A variant is one of them and its precision: plain-fp32, raw-bf16, ours-fp16-compile. Batches are powers of two, from
one until memory runs out or images a second stop growing by 3 %. The first call of each batch is not counted; what a
compiled one takes longer than those that follow is the time of compilation (without any cache of earlier ones). The
ratio of ours to raw is taken apart from that, from calls in turn.

The floor is what the multiplications and additions of the network's passes (two for each step of an image, counted by
torch from the shapes; the autoencoder's are left out) would take at the rate of a large matrix product, measured
before every variant at its precision, the best of all. Memory is the peak that torch allocated, weights included, in
GB of 10^9 bytes.

    python benchmarks/recover.py                           all of it at full size, for a GPU: some minutes
    python benchmarks/recover.py --small --max-batch 8     a network of four blocks, which a CPU can run
    python benchmarks/recover.py --prior data/shipped/cifar10-prior --set SET      a trained prior, on a set's images
    python benchmarks/recover.py --variants raw-bf16 ours-bf16 --json times.json

With a trained prior the images of lower precision are compared with those of float32 from the same noise. Targets are
judged on a GPU at full size only.
"""

import argparse
import gc
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from diver.config.prior import PriorOptions
from diver.config.recover import PRESETS, DIVERConfig
from diver.prior.base import PriorError
from diver.prior.dit import DiTPrior, embed_once, share_embedders
from diver.prior.load import DTYPES, compile_blocks, load_prior
from diver.prior.schedule import respace
from diver.recover.run import recover
from diver.recover.sampler import KeyedNoise
from diver.sets import SYMMETRIC, DistilledSet
from diver.workers import best_device

# facebook/DiT-XL-2-256 and stabilityai/sd-vae-ft-mse.
FULL: dict[str, Any] = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32}
FULL_WIDTHS, FULL_GMAC = (128, 256, 512, 512), 118.6
SMALL: dict[str, Any] = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 4, "sample_size": 16}
SMALL_WIDTHS = (32, 32, 64, 64)
SIDES, GUIDANCE, GROWTH = ("plain", "raw", "ours"), 4.0, 1.03
IMAGES_PER_SECOND, HALF_GB, FLOAT_GB, SLOWER = 15.0, 3.0, 4.0, 1.03
DEFAULT = ["plain-fp32", "raw-fp32", "ours-fp32", "ours-fp32-compile", "raw-bf16", "ours-bf16", "ours-bf16-compile"]

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    side: str
    precision: str
    compile: bool = False

    @classmethod
    def of(cls, name: str) -> "Variant":
        side, precision, *rest = name.split("-")
        compiled = rest == ["compile"] and side == "ours"
        known = side in SIDES and precision in DTYPES and (compiled or not rest)
        if not known or (side == "plain" and precision != "fp32"):
            raise argparse.ArgumentTypeError(
                f"{name!r}: plain-fp32, raw-PRECISION, ours-PRECISION or ours-PRECISION-compile, of {', '.join(DTYPES)}"
            )
        return cls(side, precision, compiled)

    def __str__(self) -> str:
        return f"{self.side}-{self.precision}{'-compile' if self.compile else ''}"


@dataclass
class Row:
    """What one variant takes at one batch. Seconds are per image; `memory` is in GB, None without a GPU.

    `spread`: longest over shortest counted call, less one. `floor`: the floor's seconds.
    """

    variant: str
    precision: str
    batch: int
    seconds: float
    spread: float
    images_per_second: float
    memory: float | None
    compile_seconds: float | None
    floor: float | None = None
    images: Tensor | None = field(default=None, repr=False)


@dataclass
class Networks:
    dit: DiTTransformer2DModel
    vae: AutoencoderKL
    scheduler: DDIMScheduler


@dataclass(frozen=True)
class Bench:
    """The settings of a run, and what its variants are made of."""

    device: torch.device
    small: bool
    source: Path | None
    steps: int
    seed: int
    repeats: int
    max_batch: int
    given: DistilledSet | None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def judged(self) -> bool:
        """Whether the targets, which are for a GPU and the full network and chain, say anything about this run."""
        return self.on_gpu and not self.small and self.source is None and self.steps == 50

    def shapes(self) -> Networks:
        """The networks without storage."""
        if self.source is None:
            return _random(self.small, torch.device("meta"))
        with torch.device("meta"):
            dit = DiTTransformer2DModel.from_config(DiTTransformer2DModel.load_config(self.source / "transformer"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(self.source / "vae"))
        return Networks(dit, vae, DDIMScheduler.from_pretrained(self.source, subfolder="scheduler"))

    def networks(self, precision: str) -> Networks:
        """As diffusers makes them. Random weights are the same at every call but for their precision."""
        if self.source is not None:
            pipeline = DiTPipeline.from_pretrained(self.source, local_files_only=True)
            found = Networks(pipeline.transformer, pipeline.vae, pipeline.scheduler)
        else:
            torch.manual_seed(self.seed)
            found = _random(self.small, self.device)
            # A converted DiT has as many equal copies of its embedding of time and class.
            first, *others = [block.norm1.emb for block in found.dit.transformer_blocks]
            for other in others:
                other.load_state_dict(first.state_dict())
        for model in (found.dit, found.vae):
            nn.Module.to(model, device=self.device, dtype=DTYPES[precision]).eval().requires_grad_(False)
        return found

    def prior(self, precision: str, compiled: bool) -> DiTPrior:
        if self.source is not None:
            options = PriorOptions(family="dit", precision=precision, compile=compiled)
            loaded = load_prior(self.source, options, str(self.device))
            assert isinstance(loaded, DiTPrior)
            return loaded
        found = self.networks(precision)
        share_embedders(found.dit)
        embed_once(found.dit)
        alphas = found.scheduler.alphas_cumprod.double()
        prior = DiTPrior(found.vae, found.dit, "random weights", alphas_cumprod=alphas)
        if compiled:
            compile_blocks(prior)
        return prior

    def config(self, count: int, classes: int, channels: int, learns_variance: bool) -> DIVERConfig:
        """diver-paper for the first `count` images at once, its indices brought to the number of steps."""
        settings = dict(PRESETS["diver-paper"].settings)
        if not learns_variance:
            settings["sg_sigma"] = "posterior"
        if channels != 4:
            settings["cfg_channels"] = None
        defaults = DIVERConfig()
        scaled = {key: getattr(defaults, key) * self.steps // 50 for key in ("t_f", "t_r", "sp_low", "sp_high")}
        settings.update(scaled, respacing=str(self.steps), batch=count, seed=self.seed)
        return DIVERConfig(**settings, class_ids=self.labels(count, classes))

    def labels(self, count: int, classes: int) -> list[int]:
        """A class of the prior for each of the first `count` images."""
        if self.given is None:
            return [i % classes for i in range(count)]
        return [label % classes for label in self.given.hard_labels()[self._chosen(count)].tolist()]

    def _chosen(self, count: int) -> Tensor:
        """The same first images whatever their number, from all over the set."""
        assert self.given is not None
        order = torch.randperm(len(self.given.images), generator=torch.Generator().manual_seed(self.seed))
        return order[torch.arange(count) % len(order)]

    def images(self, count: int, channels: int, size: int) -> DistilledSet:
        """The first `count` images, each a class of its own, so that it has the same noise and label in all batches."""
        if self.given is not None:
            images, value_range = self.given.images[self._chosen(count)], self.given.value_range
        else:
            generator = torch.Generator().manual_seed(self.seed)
            images = torch.rand(self.max_batch, channels, size, size, generator=generator)[:count] * 2 - 1
            value_range = SYMMETRIC
        return DistilledSet(images, "random", tuple(map(str, range(count))), 1, value_range, labels=torch.arange(count))


def _random(small: bool, device: torch.device) -> Networks:
    config, widths = (SMALL, SMALL_WIDTHS) if small else (FULL, FULL_WIDTHS)
    levels = len(widths)
    with device:
        dit = DiTTransformer2DModel(**config, in_channels=4, out_channels=8, patch_size=2, num_embeds_ada_norm=1000)
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
            sample_size=config["sample_size"] * 2 ** (levels - 1),
        )
    # Not in there: a scheduler's tables stay on the CPU.
    return Networks(dit, vae, DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False))


def _image_size(networks: Networks) -> int:
    return int(networks.dit.config.sample_size) * 2 ** (len(networks.vae.config.block_out_channels) - 1)


def plain_run(bench: Bench) -> Callable[[int], Run]:
    """The published loop. Its noise is that of `recover`, so that the images can be compared."""
    found = bench.networks("fp32")
    dit, vae, device = found.dit, found.vae, bench.device
    channels, classes, size = dit.config.in_channels, dit.config.num_embeds_ada_norm, dit.config.sample_size
    learned, factor = dit.config.out_channels == 2 * channels, vae.config.scaling_factor
    velocity = found.scheduler.config.prediction_type == "v_prediction"
    schedule = respace(found.scheduler.alphas_cumprod.double(), str(bench.steps))
    alphas = torch.cat([torch.ones(1, dtype=torch.float64), schedule.signals**2]).to(device)
    timesteps = schedule.timesteps.long().to(device)

    def one(image: Tensor, label: int, number: int, config: DIVERConfig) -> Tensor:
        shape, noise = (channels, size, size), KeyedNoise(config.seed, [number])
        x = F.interpolate(image[None], (_image_size(found),) * 2, mode="bilinear").to(device)
        posterior = vae.encode(x).latent_dist
        clean = (posterior.mean + posterior.std * noise.draw("posterior", shape, x)) * factor
        a = alphas[config.t_f + 1].float()
        z = a.sqrt() * clean + (1 - a).sqrt() * noise.draw("start", shape, x)
        y = torch.tensor([label, classes], device=device)
        for k in range(config.t_r - 1, -1, -1):
            # alphas[0] is the clean latent's.
            a, before = alphas[k + 1].float(), alphas[k].float()
            answer = dit(torch.cat([z, z]), timestep=timesteps[k].expand(2), class_labels=y).sample
            eps, raw = answer[:, :channels], answer[:, channels:]
            if velocity:
                eps = a.sqrt() * eps + (1 - a).sqrt() * z
            guided = slice(None, config.cfg_channels)
            eps_c, eps_u = eps.chunk(2)
            eps = eps_c.clone()
            eps[:, guided] = eps_u[:, guided] + config.cfg_scale * (eps_c[:, guided] - eps_u[:, guided])
            predicted = (z - (1 - a).sqrt() * eps) / a.sqrt()
            z = before.sqrt() * predicted + (1 - before).sqrt() * eps
            if config.sp_low <= k <= config.sp_high:
                beta = 1 - alphas[k + 1] / alphas[k]
                log_variance = (beta * (1 - alphas[k]) / (1 - alphas[k + 1])).log().float()
                if learned:
                    fraction = (raw[:1] + 1) / 2
                    log_variance = fraction * beta.log().float() + (1 - fraction) * log_variance
                z = z - config.gamma * (0.5 * log_variance).exp() * (predicted - clean)
        return vae.decode(z / factor).sample

    def prepared(batch: int) -> Run:
        config, labels = bench.config(batch, classes, channels, learned), bench.labels(batch, classes)
        source = bench.images(batch, vae.config.in_channels, _image_size(found))

        @torch.no_grad()
        def run() -> Tensor:
            return torch.cat([one(source.images[i], labels[i], i, config).cpu() for i in range(batch)])

        return run

    return prepared


def raw_run(bench: Bench, precision: str) -> Callable[[int], Run]:
    found = bench.networks(precision)
    pipeline = DiTPipeline(found.dit, found.vae, found.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    classes = found.dit.config.num_embeds_ada_norm
    if classes != 1000:
        # The pipeline has ImageNet's null class written into it.
        found.dit.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "class_labels": kwargs["class_labels"].clamp(max=classes)}),
            with_kwargs=True,
        )

    def prepared(batch: int) -> Run:
        labels = bench.labels(batch, classes)

        def run() -> Tensor:
            generator = torch.Generator().manual_seed(bench.seed)
            made = pipeline(labels, GUIDANCE, generator, bench.steps, output_type="pt").images
            return made.float().cpu()

        return run

    return prepared


def ours_run(bench: Bench, precision: str, compiled: bool) -> Callable[[int], Run]:
    prior = bench.prior(precision, compiled)

    def prepared(batch: int) -> Run:
        config = bench.config(batch, prior.classes, prior.latent_shape[0], prior.learns_variance)
        source = bench.images(batch, prior.image_channels, prior.image_size)

        def run() -> Tensor:
            with _whole_batches(prior, 2 * batch):
                return recover(source, prior, "diver", config).images

        return run

    return prepared


@contextmanager
def _whole_batches(prior: DiTPrior, expected: int) -> Iterator[None]:
    """Raises OutOfMemoryError where `recover` would go on with smaller parts."""

    def check(_: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args[0]) < expected:
            raise _Smaller

    handle = prior.network.register_forward_pre_hook(check)
    try:
        yield
    except _Smaller:
        raise torch.OutOfMemoryError from None
    finally:
        handle.remove()


class _Smaller(Exception):
    pass


def made(bench: Bench, variant: Variant) -> Callable[[int], Run]:
    """Build a variant's networks; what is returned makes a run of it at a batch."""
    if variant.side == "plain":
        return plain_run(bench)
    if variant.side == "raw":
        return raw_run(bench, variant.precision)
    return ours_run(bench, variant.precision, variant.compile)


def timed(bench: Bench, run: Run) -> tuple[float, Tensor]:
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)
    started = time.perf_counter()
    images = run()
    if bench.on_gpu:
        torch.cuda.synchronize(bench.device)
    return time.perf_counter() - started, images


def cleared(bench: Bench) -> None:
    gc.collect()
    torch.compiler.reset()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)


def measured(bench: Bench, variant: Variant) -> list[Row]:
    """A row for each batch that was tried; empty when even one image finds no memory."""
    rows: list[Row] = []
    batch, largest, prepared = 1, 1 if variant.side == "plain" else bench.max_batch, made(bench, variant)
    while batch <= largest:
        cleared(bench)
        try:
            run = prepared(batch)
            first, images = timed(bench, run)
            counted = [timed(bench, run)[0] for _ in range(bench.repeats)]
        except torch.OutOfMemoryError:
            print(f"{variant}: no memory for a batch of {batch}", flush=True)
            break
        if not torch.isfinite(images).all():
            print(f"{variant}: the images are not finite", flush=True)
        memory = torch.cuda.max_memory_allocated(bench.device) / 1e9 if bench.on_gpu else None
        seconds, spread = statistics.median(counted), max(counted) / min(counted) - 1
        compiling = max(0.0, first - seconds) if variant.compile else None
        each = seconds / batch
        rows.append(
            Row(str(variant), variant.precision, batch, each, spread, 1 / each, memory, compiling, images=images)
        )
        print(f"{variant}, batch {batch}: {each:.3f} s an image", flush=True)
        if len(rows) > 1 and rows[-1].images_per_second < GROWTH * max(r.images_per_second for r in rows[:-1]):
            break
        batch *= 2
    return rows


def paired(bench: Bench, variant: Variant, batch: int) -> list[float]:
    """Time of ours over raw's of the same precision and batch, in pairs of calls; empty where memory does not do.

    What else the machine does weighs on both calls of a pair, and each comes first in every other one.
    """
    cleared(bench)
    try:
        ours, raw = made(bench, variant)(batch), made(bench, Variant("raw", variant.precision))(batch)
        ours(), raw()
        found = []
        for i in range(bench.repeats):
            runs = [ours, raw] if i % 2 else [raw, ours]
            seconds = {run: timed(bench, run)[0] for run in runs}
            found.append(seconds[ours] / seconds[raw])
        return found
    except torch.OutOfMemoryError:
        return []


def matrix_rate(precision: str, device: torch.device, tries: int = 5) -> float:
    """Operations a second of a large matrix product, the best of some."""
    size, times = (8192, 10) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    best = math.inf
    for _ in range(tries + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / times)
    return 2 * size**3 / best


def multiplications(networks: Networks) -> tuple[float, float]:
    """Multiply-adds of one pass of the network, and of encoding and decoding, for one image."""
    config, size = networks.dit.config, _image_size(networks)
    with torch.device("meta"), torch.no_grad():
        latent = torch.empty(1, config.in_channels, config.sample_size, config.sample_size)
        image = torch.empty(1, networks.vae.config.in_channels, size, size)
        number = torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as network:
            networks.dit.eval()(latent, timestep=number, class_labels=number)
        with FlopCounterMode(display=False) as autoencoder:
            networks.vae.encode(image)
            networks.vae.decode(latent)
    return network.get_total_flops() / 2, autoencoder.get_total_flops() / 2


def psnr(images: Tensor, reference: Tensor) -> list[float]:
    """Of each image in dB, both clipped to [-1, 1]."""
    count = min(len(images), len(reference))
    error = (images[:count].clamp(-1, 1) - reference[:count].clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp_min(1e-20))).tolist()


def ends(rows: Sequence[Row]) -> list[Row]:
    """Batch 1 and the best batch, once where they are the same."""
    if not rows:
        return []
    best = best_of(rows)
    return [rows[0]] if best is rows[0] else [rows[0], best]


def best_of(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.images_per_second)


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    print(flush=True)


def show_times(found: dict[Variant, list[Row]]) -> None:
    """Batch 1 and the best batch of each variant."""
    plain = next((rows[0] for v, rows in found.items() if v.side == "plain" and rows), None)
    lines = []
    for rows in found.values():
        for row in ends(rows):
            lines.append(
                [
                    row.variant,
                    f"{row.batch}{' best' if row is best_of(rows) else ''}",
                    f"{row.seconds:.4f}",
                    f"{row.spread:.0%}",
                    f"{row.images_per_second:.3f}",
                    f"{plain.seconds / row.seconds:.2f}" if plain else "-",
                    "-" if row.floor is None else f"{row.floor / row.seconds:.0%}",
                    "-" if row.memory is None else f"{row.memory:.2f}",
                    "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
                ]
            )
    show(
        ["variant", "batch", "s/image", "spread", "images/s", "x plain", "of floor", "peak GB", "compile s"],
        lines,
    )


def verdict(bench: Bench, met: bool | None) -> str:
    if not bench.judged or met is None:
        return "not applicable here"
    return "met" if met else "missed"


def targets(
    bench: Bench, found: dict[Variant, list[Row]], ratios: dict[tuple[Variant, int], list[float]]
) -> list[dict[str, str]]:
    lines = []

    def line(target: str, variant: str, value: str, met: bool | None) -> None:
        lines.append({"target": target, "variant": variant, "measured": value, "verdict": verdict(bench, met)})

    ours = {v: rows for v, rows in found.items() if v.side == "ours" and rows}
    half = [best_of(rows) for v, rows in ours.items() if v.precision != "fp32"]
    if half:
        best = best_of(half)
        rate = best.images_per_second
        line(
            f"{IMAGES_PER_SECOND:.0f} images a second",
            f"{best.variant}, batch {best.batch}",
            f"{rate:.3f}",
            rate >= IMAGES_PER_SECOND,
        )
    for variant, rows in ours.items():
        limit, memory = (FLOAT_GB if variant.precision == "fp32" else HALF_GB), rows[0].memory
        shown, met = ("-", None) if memory is None else (f"{memory:.2f} GB", memory <= limit)
        line(f"{limit:.1f} GB at batch 1", str(variant), shown, met)
    for (variant, batch), pairs in ratios.items():
        ratio = statistics.median(pairs) if pairs else math.nan
        line(
            f"time over raw's at most {SLOWER}",
            f"{variant}, batch {batch}",
            f"{ratio:.3f} ({min(pairs):.3f} to {max(pairs):.3f})" if pairs else "no memory for both",
            ratio <= SLOWER if pairs else None,
        )
    return lines


def compared(bench: Bench, found: dict[Variant, list[Row]]) -> list[dict[str, Any]]:
    """PSNR of every variant of ours, and of plain, against ours in float32 (or plain, where that was not run)."""
    last = {v: rows[-1].images for v, rows in found.items() if rows and v.side != "raw"}
    reference = next((v for v in (Variant("ours", "fp32"), Variant("plain", "fp32")) if v in last), None)
    lines: list[dict[str, Any]] = []
    for variant, images in last.items():
        if reference is None or variant == reference:
            continue
        base = last[reference]
        assert images is not None and base is not None
        values = psnr(images, base)
        lines.append(
            {
                "variant": str(variant),
                "against": str(reference),
                "images": len(values),
                "mean": statistics.fmean(values),
                "median": statistics.median(values),
                "worst": min(values),
            }
        )
    return lines


def _is_dit(path: Path) -> bool:
    try:
        return bool(json.loads((path / "model_index.json").read_text())["_class_name"] == "DiTPipeline")
    except (OSError, ValueError, KeyError):
        return False


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", nargs="+", type=Variant.of, default=DEFAULT, help=f"by default {' '.join(DEFAULT)}"
    )
    parser.add_argument(
        "--device", default=str(best_device()), help="cuda, cuda:1 or cpu; by default a GPU if there is one"
    )
    parser.add_argument("--small", action="store_true", help="a small network at 128 pixels instead of DiT-XL/2")
    parser.add_argument("--prior", type=Path, help="a directory in DiTPipeline's layout instead of random weights")
    parser.add_argument("--set", type=Path, help="a distilled set whose images are recovered; by default random ones")
    parser.add_argument("--max-batch", type=int, help="largest batch; by default 128 on a GPU and 8 elsewhere")
    parser.add_argument("--repeats", type=int, default=3, help="counted calls, of which the median is taken")
    parser.add_argument(
        "--steps", type=int, default=50, help="steps of the chain; DIVER's indices are scaled with them"
    )
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and noise")
    parser.add_argument("--tf32", action="store_true", help="let float32 products on a GPU be TF32's")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file")
    arguments = parser.parse_args()
    arguments.variants = [v if isinstance(v, Variant) else Variant.of(v) for v in arguments.variants]
    if arguments.small and arguments.prior:
        parser.error("--small and --prior exclude each other")
    if arguments.prior and not _is_dit(arguments.prior):
        parser.error(f"--prior {arguments.prior}: not a directory as written by DiTPipeline.save_pretrained")
    if any(n is not None and n < 1 for n in (arguments.repeats, arguments.max_batch, arguments.threads)):
        parser.error("--repeats, --max-batch and --threads: at least 1")
    if arguments.steps < 10:
        parser.error("--steps: at least 10, so that DIVER's window has its place")
    return arguments


def bench_of(arguments: argparse.Namespace) -> Bench:
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.tf32
    # What a compilation takes would otherwise depend on earlier runs.
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message=".*force_disable_caches")
    return Bench(
        device,
        arguments.small,
        arguments.prior,
        arguments.steps,
        arguments.seed,
        arguments.repeats,
        arguments.max_batch or (128 if device.type == "cuda" else 8),
        DistilledSet.read(arguments.set) if arguments.set else None,
    )


def main() -> None:
    arguments = arguments_of()
    bench = bench_of(arguments)
    where = torch.cuda.get_device_name(bench.device) if bench.on_gpu else f"CPU, {torch.get_num_threads()} threads"
    shapes = bench.shapes()
    each, autoencoder = multiplications(shapes)
    if not bench.small and bench.source is None:
        assert abs(each / 1e9 - FULL_GMAC) < 0.005 * FULL_GMAC, f"{each / 1e9:.1f} GMAC a pass, not {FULL_GMAC}"
    name = str(bench.source) if bench.source else ("small network" if bench.small else "DiT-XL/2") + ", random weights"
    passes = 2 * bench.steps * each
    print(f"{where}; torch {torch.__version__}, diffusers {diffusers.__version__}; TF32 {arguments.tf32}")
    print(f"{name}, {_image_size(shapes)} pixels, {bench.steps} steps, {bench.repeats} repeats")
    print(
        f"{each / 1e9:.4g} GMAC a pass and image, {passes / 1e12:.3g} TMAC for two passes a step; autoencoder "
        f"{autoencoder / 1e12:.3g} TMAC besides ({autoencoder / passes:.1%}), not in the floor"
    )
    print(flush=True)
    found: dict[Variant, list[Row]] = {}
    rates: dict[str, float] = {}
    for variant in arguments.variants:
        precision = variant.precision
        # A CPU's products of that type are emulated and no measure of what it could do.
        if bench.on_gpu or precision != "fp16":
            rates[precision] = max(rates.get(precision, 0.0), matrix_rate(precision, bench.device))
        found[variant] = measured(bench, variant)
        cleared(bench)
    floors = {precision: 2 * passes / rate for precision, rate in rates.items()}
    print()
    for precision, rate in rates.items():
        print(f"matrix rate, {precision}: {rate / 1e12:.3f} TFLOP/s; floor {floors[precision]:.4f} s an image")
    for row in [row for rows in found.values() for row in rows]:
        row.floor = floors.get(row.precision)
    print()
    show_times(found)

    ratios: dict[tuple[Variant, int], list[float]] = {}
    for variant, rows in found.items():
        if variant.side == "ours" and Variant("raw", variant.precision) in found:
            ratios.update({(variant, row.batch): paired(bench, variant, row.batch) for row in ends(rows)})
    judged = targets(bench, found, ratios)
    if judged:
        show(list(judged[0]), [list(line.values()) for line in judged])

    differences = compared(bench, found)
    if differences:
        show(
            ["PSNR in dB", "against", "images", "mean", "median", "worst"],
            [[f"{x:.1f}" if isinstance(x, float) else str(x) for x in line.values()] for line in differences],
        )
        if bench.source is None:
            print("The weights are random: PSNR says that the variants agree, and little of what precision costs.")
    if arguments.json:
        times = [asdict(replace(row, images=None)) for rows in found.values() for row in rows]
        for line in times:
            del line["images"]
        content = {
            "device": where,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "network": name,
            "steps": bench.steps,
            "tf32": arguments.tf32,
            "gmac_per_pass": each / 1e9,
            "autoencoder_gmac": autoencoder / 1e9,
            "flop_per_second": rates,
            "floor_seconds": floors,
            "rows": times,
            "ours_over_raw": [{"variant": str(v), "batch": b, "pairs": pairs} for (v, b), pairs in ratios.items()],
            "targets": judged,
            "psnr": differences,
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except PriorError as error:
        raise SystemExit(str(error)) from error
