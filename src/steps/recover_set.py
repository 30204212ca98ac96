"""Map a stage-1 set to a recovered one, or some of its classes to a shard of it."""

from diver.config.recover import SETTINGS
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.run import recover_file

wildcards, params, files = snakemake.wildcards, snakemake.params, snakemake.input
classes = range(*params.classes) if params.get("classes") else None
part = f", classes {classes.start} to {classes.stop - 1}" if classes else ""
with step_log(
    snakemake.log[0], snakemake.threads, f"{wildcards.stage2} on {wildcards.stage1}{part}", snakemake.resources.gpu
) as progress:
    recover_file(
        snakemake.input.set,
        snakemake.output.set,
        load_placed(params.prior, params.options, files),
        params.method,
        SETTINGS[params.method](**params.settings),
        code=params.code,
        classes=classes,
        progress=progress,
    )
