"""Make a set with a diffusion-native system."""

from pathlib import Path

from diver.config.native import SETTINGS
from diver.data.prepared import Prepared
from diver.places import placed
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.systems import SYSTEMS

wildcards, params = snakemake.wildcards, snakemake.params
label = f"{wildcards.stage1}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label, snakemake.resources.gpu) as progress:
    made = SYSTEMS[params.method](
        Prepared.read(snakemake.input.prepared),
        int(wildcards.ipc),
        load_placed(params.prior, params.options, snakemake.input),
        SETTINGS[params.method](**params.settings),
        artefacts={name: Path(path) for name, path in placed(params.artefacts, snakemake.input).items()},
        code=params.code,
        progress=progress,
        folder=Path(params.folder),
    )
    made.write(snakemake.output.set)
