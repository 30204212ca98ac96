"""One tidy table: a row per trained student."""

import pandas as pd

from diver.progress import step_log

with step_log(snakemake.log[0], snakemake.threads, "results"):
    table = pd.concat([pd.read_csv(path, keep_default_na=False) for path in snakemake.input.results], ignore_index=True)
    keys = ["dataset", "ipc", "stage1", "stage2", "scale", "architecture", "seed"]
    table = table.sort_values(keys, ignore_index=True)
    table.to_csv(snakemake.output.csv, index=False)
    table.to_parquet(snakemake.output.parquet, index=False)
