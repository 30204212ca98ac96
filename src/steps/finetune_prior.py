"""Fine-tune the prior to be representative and diverse (Minimax Diffusion), and write it as a prior of its own."""

import csv
from pathlib import Path

from diver.config.native import SETTINGS
from diver.data.prepared import Prepared
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.latents import Latents
from diver.recover.minimax import write_tuned
from diver.recover.tuning import COLUMNS, finetune

wildcards, params, output = snakemake.wildcards, snakemake.params, snakemake.output
with step_log(
    snakemake.log[0], snakemake.threads, f"fine-tuning of {wildcards.stage1}", snakemake.resources.gpu
) as progress:
    # Compiled blocks keep what they were compiled for, and in half precision steps would be lost to rounding.
    prior = load_placed(params.prior, {**params.options, "compile": False, "precision": "fp32"}, snakemake.input)
    data = Prepared.read(snakemake.input.prepared)
    checkpoint = Path(params.checkpoint)
    found, curve = finetune(
        Latents.open(snakemake.input.latents, data, prior),
        data,
        prior,
        SETTINGS[params.method](**params.settings),
        checkpoint=checkpoint,
        progress=progress,
        code=params.code,
    )
    with Path(output.curve).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(curve)
    write_tuned(prior, Path(output.index).parent, found)
    # What a killed run goes on from is of no more use.
    checkpoint.unlink(missing_ok=True)
