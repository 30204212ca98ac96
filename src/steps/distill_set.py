"""Make a stage-1 set."""

from diver.config.distill import SETTINGS
from diver.data.prepared import Prepared
from diver.distill import METHODS
from diver.progress import step_log

wildcards, params = snakemake.wildcards, snakemake.params
label = f"{wildcards.stage1}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label) as progress:
    data = Prepared.read(snakemake.input.prepared)
    distilled = METHODS[params.method](
        data, int(wildcards.ipc), SETTINGS[params.method](**params.settings), code=params.code, progress=progress
    )
    distilled.write(snakemake.output.set)
