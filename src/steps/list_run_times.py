"""Sum up how long the jobs of each kind took, from Snakemake's benchmark files."""

from pathlib import Path

from diver.progress import step_log
from diver.report.pages import Section, page
from diver.report.record import run_times

output = snakemake.output
with step_log(snakemake.log[0], snakemake.threads, "run times"):
    table = run_times(snakemake.params.folder)
    table.to_csv(output.csv, index=False)
    shown = table.set_axis(["jobs of", "jobs", "seconds", "longest", "memory, MB (largest)"], axis=1)
    total = table["seconds"].sum()
    text = (
        f"All jobs took {total / 60:.1f} minutes of wall-clock time one after the other. Each job's last run counts, "
        "also of jobs that the study has no longer; times differ from run to run, so no other file holds any."
    )
    Path(output.html).write_text(page("Run times", [Section("By kind of job", text, shown)]))
