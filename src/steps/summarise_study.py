"""Write the page that says what the study is: its parts, what was trained, and its configuration."""

from pathlib import Path

import pandas as pd

from diver.progress import step_log
from diver.report.pages import Section, page
from diver.report.record import outcome

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, "summary"):
    results = pd.read_csv(snakemake.input.results, keep_default_na=False)
    parts = pd.DataFrame([*params.facts, *outcome(results)], columns=["", " "])
    sections = [
        Section("The study", params.title, parts),
        Section(
            "Configuration", "As it was given; diver check and config/README.md say what is left out.", code=params.yaml
        ),
    ]
    Path(snakemake.output.html).write_text(page(f"Study {params.study}", sections))
