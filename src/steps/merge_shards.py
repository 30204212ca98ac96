"""Put the shards of a recovered set together."""

from diver.progress import step_log
from diver.setfile import merge

with step_log(snakemake.log[0], snakemake.threads, f"{snakemake.wildcards.stage2}, shards"):
    merge(snakemake.input.set, list(snakemake.input.shards), snakemake.output.set)
