"""Draw the same images under each treatment."""

from diver.progress import step_log
from diver.report.figures import gallery
from diver.sets import UNIT, DistilledSet

with step_log(snakemake.log[0], snakemake.threads, "gallery"):
    sets = [DistilledSet.read(path).in_range(UNIT) for path in snakemake.input.sets]
    rows = {
        label: (one.images.numpy(), one.hard_labels().numpy())
        for label, one in zip(snakemake.params.labels, sets, strict=True)
    }
    gallery(rows, sets[0].classes, snakemake.output.png)
