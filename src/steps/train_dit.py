"""Train the prior's transformer on the autoencoder's latents; write the pipeline, and one per snapshot."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DiTPipeline

from diver.config.prior import DiTTraining
from diver.data.prepared import Prepared
from diver.prior.classes import write_labels
from diver.prior.train import dit_scheduler, parameters_of, train_dit
from diver.progress import step_log

with step_log(snakemake.log[0], snakemake.threads, "transformer") as progress:
    data = Prepared.read(snakemake.input.prepared)
    checkpoint = Path(snakemake.params.checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    config = DiTTraining(**snakemake.params.settings)
    vae = AutoencoderKL.from_pretrained(Path(snakemake.input.vae_config).parent).eval()
    for step, model, seconds in train_dit(
        vae,
        data.train_images,
        data.train_labels,
        len(data.classes),
        config,
        snakemake.params.seed,
        checkpoint,
        Path(snakemake.output.curve),
        progress,
        snakemake.params.code,
    ):
        final = step == config.steps
        pipeline = DiTPipeline(model.half(), vae.half(), dit_scheduler())
        folder = Path(snakemake.output.index).parent if final else Path(snakemake.params.snapshots) / f"{step}"
        pipeline.save_pretrained(folder)
        write_labels(folder, {str(number): name for number, name in enumerate(data.classes)})
        vae.float()
        if final:
            facts = {
                "parameters": parameters_of(model),
                "seconds": seconds,
                "settings": config.model_dump(),
                "seed": snakemake.params.seed,
            }
            Path(snakemake.output.facts).write_text(json.dumps(facts, indent=1))
