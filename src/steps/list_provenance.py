"""List every file of the study with the rule, code and digest that it has, and the chain of methods of each set."""

from pathlib import Path

from diver.progress import step_log
from diver.report.pages import Section, page
from diver.report.record import chains_of, files_of

output = snakemake.output
with step_log(snakemake.log[0], snakemake.threads, "provenance"):
    files = files_of(snakemake.params.artifacts)
    chains = chains_of(list(files["file"]))
    files.to_csv(output.files, index=False)
    chains.to_csv(output.chains, index=False)
    sections = [
        Section(
            "Files",
            "Each file with the rule that makes it, the digest of the rule's script and of what it imports, "
            "and the SHA-256 of its content.",
            files,
        ),
        Section(
            "Chains of methods",
            "What made each set, as its own header says: methods in order, with seed, digest of their code and all "
            "parameters.",
            chains,
        ),
    ]
    Path(output.html).write_text(page("Provenance", sections))
