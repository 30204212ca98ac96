"""Fetch a dataset from its first source that works, verify it, write the prepared file."""

from diver.data.prepare import fetch_and_prepare
from diver.data.spec import DatasetSpec
from diver.progress import step_log

with step_log(snakemake.log[0], snakemake.threads, f"data {snakemake.wildcards.dataset}") as progress:
    fetch_and_prepare(
        DatasetSpec(**snakemake.params.spec),
        snakemake.params.raw,
        snakemake.output.prepared,
        workers=snakemake.threads,
        progress=progress,
    )
