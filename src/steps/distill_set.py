"""Make a stage-1 set."""

from pathlib import Path

from diver.config.distill import SETTINGS
from diver.data.prepared import Prepared
from diver.distill import METHODS
from diver.distill.loop import STATE
from diver.places import placed
from diver.progress import step_log

wildcards, params = snakemake.wildcards, snakemake.params
label = f"{wildcards.stage1}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label, snakemake.resources.gpu) as progress:
    data = Prepared.read(snakemake.input.prepared)
    distilled = METHODS[params.method](
        data,
        int(wildcards.ipc),
        SETTINGS[params.method](**placed(params.settings, snakemake.input)),
        code=params.code,
        progress=progress,
        folder=Path(params.folder),
    )
    distilled.write(snakemake.output.set)
    # The pictures stay; the state is of no more use.
    (Path(params.folder) / STATE).unlink(missing_ok=True)
