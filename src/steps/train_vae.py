"""Train the prior's autoencoder."""

import json
from pathlib import Path

from diver.config.prior import VAETraining
from diver.data.prepared import Prepared
from diver.prior.train import parameters_of, reconstruction_psnr, train_vae
from diver.progress import step_log

with step_log(snakemake.log[0], snakemake.threads, "autoencoder") as progress:
    data = Prepared.read(snakemake.input.prepared)
    checkpoint = Path(snakemake.params.checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    config = VAETraining(**snakemake.params.settings)
    vae, seconds = train_vae(
        data.train_images,
        config,
        snakemake.params.seed,
        checkpoint,
        Path(snakemake.output.curve),
        progress,
        snakemake.params.code,
    )
    vae.half().save_pretrained(Path(snakemake.output.config).parent)
    facts = {
        "psnr_test_db": reconstruction_psnr(vae.float(), data.test_images),
        "parameters": parameters_of(vae),
        "seconds": seconds,
        "settings": config.model_dump(),
        "seed": snakemake.params.seed,
    }
    Path(snakemake.output.facts).write_text(json.dumps(facts, indent=1))
