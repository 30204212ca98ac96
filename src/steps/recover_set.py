"""Map a stage-1 set to a recovered one."""

from diver.config.recover import SETTINGS
from diver.prior.load import load_prior
from diver.progress import step_log
from diver.recover import METHODS
from diver.sets import DistilledSet

wildcards, params = snakemake.wildcards, snakemake.params
label = f"{wildcards.stage2} on {wildcards.stage1}, IPC {wildcards.ipc}"
with step_log(snakemake.log[0], snakemake.threads, label) as progress:
    recovered = METHODS[params.method](
        DistilledSet.read(snakemake.input.set),
        load_prior(params.prior),
        SETTINGS[params.method](**params.settings),
        code=params.code,
        progress=progress,
    )
    recovered.write(snakemake.output.set)
