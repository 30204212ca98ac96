"""Measure the sets of a dataset as images, against real ones; a row each."""

from diver.config.students import Teacher
from diver.data.prepared import Prepared
from diver.networks.weights import load_teacher
from diver.places import placed
from diver.progress import step_log
from diver.report.measure import Extractor, Reference
from diver.sets import DistilledSet
from diver.students.evaluate import student_images, write_rows

params = snakemake.params
with step_log(snakemake.log[0], snakemake.threads, f"measures of {snakemake.wildcards.dataset}") as progress:
    data, extractor = Prepared.read(snakemake.input.prepared), Extractor.of_pixels()
    if params.teacher is not None:
        chosen = Teacher(**params.teacher)
        extractor = Extractor.of_teacher(
            load_teacher(placed(params.source, snakemake.input), data, chosen.network, chosen.options)
        )
    reference = Reference.of(data, extractor, params.per_class)
    rows = []
    for number, (path, cell) in enumerate(zip(snakemake.input.sets, params.cells, strict=True)):
        progress(number, len(params.cells), "sets")
        distilled = DistilledSet.read(path)
        images = student_images(distilled, data, matched=True)
        rows.append({**cell, **reference.measure(images, distilled.hard_labels())})
    write_rows(snakemake.output.rows, rows)
