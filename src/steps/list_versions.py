"""List the versions of the environment that this runs in beside those that the environments pin."""

from pathlib import Path

from diver.progress import step_log
from diver.report.pages import Section, page
from diver.report.record import versions

output = snakemake.output
with step_log(snakemake.log[0], snakemake.threads, "versions"):
    table = versions(snakemake.input.environments)
    table.to_csv(output.csv, index=False)
    text = "Versions of the environment that made this page, and those that the files in envs/ pin."
    Path(output.html).write_text(page("Environment", [Section("Versions", text, table)]))
