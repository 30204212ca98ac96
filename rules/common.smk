"""Helpers of all rules: the validated study, its cells and paths, and the digests of the code."""

import os
import sys
from dataclasses import replace

from snakemake.exceptions import WorkflowError

SOURCE = f"{workflow.basedir}/src"
# Jobs inherit these: without them glibc gives each large tensor back to the system at once, and page faults take up
# to half of a small student's time. Results do not change.
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(10**10))
sys.path.insert(0, SOURCE)

from diver import study as cells
from diver.config.base import ConfigError
from diver.config.study import NONE, parse_study
from diver.data.spec import SpecError, load_dataset_spec
from diver.provenance import code_digest

try:
    STUDY = parse_study(config, " and ".join(map(str, workflow.configfiles)) or "the configuration")
    DATASETS = {name: load_dataset_spec(f"config/datasets/{name}.yaml") for name in STUDY.datasets}
except (ConfigError, SpecError) as fault:
    raise WorkflowError(str(fault)) from None

RESULTS = str(cells.results_path(STUDY))
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
SETS = list(cells.set_cells(STUDY))
STUDENTS = list(cells.student_cells(STUDY))
MADE_BY_RULE = STUDY.prior.source == "trained"


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    ipc=r"\d+",
    stage1="|".join(STUDY.distill),
    stage2="|".join(STUDY.recover) or "none",
    scale=f"{cells.MATCHED}|{cells.AS_PUBLISHED}",
    group="|".join(cells.student_groups(STUDY)),


def code(step):
    """Digest of a step's script and of every local module that it imports."""
    return code_digest(f"{SOURCE}/steps/{step}.py")


def set_paths(recovered):
    """Paths of all stage-1 sets, or of all recovered sets."""
    return [cells.set_path(STUDY, cell) for cell in SETS if (cell.stage2 != NONE) == recovered]


def student_paths():
    return [cells.students_path(STUDY, cell) for cell in STUDENTS]


def student_architectures(wildcards):
    """Settings of the architectures that one job trains."""
    names = cells.student_groups(STUDY)[wildcards.group]
    return {name: STUDY.students.architectures[name].model_dump(mode="json") for name in names}


def source_set(wildcards):
    """The set that students are trained on: recovered, or the stage-1 set itself."""
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.set)
    return cells.set_path(STUDY, cell)


def stage1_set(wildcards):
    return cells.set_path(STUDY, cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1))


def prior_files(wildcards):
    """The files of a local prior, so that a change of them is seen; a hub name has none."""
    return cells.prior_files(STUDY, wildcards.dataset)


def prior_source(wildcards):
    return cells.prior_path(STUDY, wildcards.dataset)


def distill_settings(wildcards):
    return STUDY.distill[wildcards.stage1].at(int(wildcards.ipc))


def recover_settings(wildcards):
    return STUDY.recover[wildcards.stage2].full()


def display_names():
    """Labels and order of the study's entries for tables and figures."""
    return {
        "stage1": {name: entry.label for name, entry in STUDY.distill.items()},
        "stage2": {NONE: "stage-1 set", **{name: entry.label for name, entry in STUDY.recover.items()}},
        "architecture": {name: entry.label for name, entry in STUDY.students.architectures.items()},
        "dataset": {name: spec.label or name for name, spec in DATASETS.items()},
    }


SHOWN = cells.SetCell(STUDY.datasets[0], max(STUDY.ipc), STUDY.report.ladder_of or next(iter(STUDY.distill)))


def gallery_sets():
    """The sets of the gallery: the same images of the first dataset under each treatment, at the largest IPC."""
    return [cells.set_path(STUDY, replace(SHOWN, stage2=stage2)) for stage2 in STUDY.report.gallery]


def gallery_labels():
    stage1, names = STUDY.distill[SHOWN.stage1].label, display_names()["stage2"]
    return [stage1 if stage2 == NONE else names[stage2] for stage2 in STUDY.report.gallery]


def trace_path():
    """The trajectory that is pictured, at the largest IPC."""
    return f"{RESULTS}/traces/{SHOWN.dataset}/ipc{SHOWN.ipc}/{SHOWN.stage1}/{STUDY.report.phases_of}.npz"
