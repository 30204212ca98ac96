"""Write tables of the publication, ours beside the published numbers, from the students that there are."""

from pathlib import Path

from diver.progress import step_log
from diver.report.forms import WRITERS, write_table
from diver.report.labels import Labels
from diver.report.paper import paper_table, read_students
from diver.report.published import read_published

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "tables of the publication"):
    published, labels = read_published(snakemake.input.published), Labels(**params.names)
    # A table by itself takes what is there: neither the students nor the table are files that the rule declares.
    results = read_students(params.get("students", snakemake.input.get("results", [])))
    folder = Path(params.get("folder") or Path(snakemake.output[0]).parent)
    for name, table in params.tables.items():
        made = paper_table(results, published, labels=labels, **table)
        write_table(made, *(folder / f"{name}{form}" for form in WRITERS))
