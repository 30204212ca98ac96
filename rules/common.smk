"""Helpers of all rules: the validated study, its cells and paths, and the digests of the code."""

import os
import re
import sys
from dataclasses import asdict, replace

from snakemake.exceptions import WorkflowError

SOURCE = f"{workflow.basedir}/src"
sys.path.insert(0, SOURCE)

from diver import study as cells
from diver.config.base import ConfigError
from diver.config.distill import NETWORKS, PIXELS, TEACHER
from diver.config.networks import RECORDED
from diver.config.study import NONE, parse_study
from diver.data.spec import SpecError, load_dataset_spec
from diver.progress import WORKFLOW_VARIABLE
from diver.provenance import code_digest

# A step ends with the Snakemake that started it.
os.environ[WORKFLOW_VARIABLE] = str(os.getpid())
# diffusers asks whether there is a GPU while it is imported, before a job has its device; asked like this, CUDA does not
# fix the devices that it sees.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

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
# Values of a stage-1 method's network that are no file.
NO_FILE = (PIXELS, "experts", "imagenet", NONE)


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    ipc=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    stage1="|".join(STUDY.distill),
    stage2="|".join(map(re.escape, STUDY.recover)) or "none",
    experts="|".join(STUDY.all_experts()),
    scale=f"{cells.MATCHED}|{cells.AS_PUBLISHED}",
    group="|".join(cells.student_groups(STUDY)),


def check_pool():
    """Refuse a pool of GPUs that is too small for some job, to which Snakemake would silently give fewer."""
    pool = workflow.global_resources.get("gpu").value
    for one in workflow.rules if pool is not None else []:
        asked = one.resources.get("gpu").value
        if asked is not None and asked > pool:
            raise WorkflowError(
                f"{one.name} asks for {asked} GPUs, but --resources gpu={pool} is a smaller pool; raise it, or ask for "
                f"fewer: --config gpus=0 keeps all jobs on the CPU, --set-resources {one.name}:gpu={pool} changes one rule"
            )


def code(step):
    """Digest of a step's script and of every local module that it imports."""
    return code_digest(f"{SOURCE}/steps/{step}.py")


def set_paths(recovered):
    """Paths of all stage-1 sets, or of all recovered sets."""
    return [cells.set_path(STUDY, cell) for cell in SETS if (cell.stage2 != NONE) == recovered]


def cells_of_dataset(wildcards):
    """All sets of a dataset, stage-1 and recovered."""
    return [cell for cell in SETS if cell.dataset == wildcards.dataset]


def sets_of_dataset(wildcards):
    return [cells.set_path(STUDY, cell) for cell in cells_of_dataset(wildcards)]


def student_paths():
    """Tables of all students: of every set, and of the whole training set if the study asks for it."""
    groups = cells.student_groups(STUDY) if STUDY.students.full_data else []
    ceilings = [cells.full_path(STUDY, dataset, group) for dataset in STUDY.datasets for group in groups]
    return [cells.students_path(STUDY, cell) for cell in STUDENTS] + ceilings


def student_architectures(wildcards):
    """Settings of the architectures that one job trains."""
    names = cells.student_groups(STUDY)[wildcards.group]
    return {name: STUDY.students.architectures[name].model_dump(mode="json") for name in names}


def source_set(wildcards):
    """The set that students are trained on: recovered, or the stage-1 set itself."""
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.set)
    return cells.set_path(STUDY, cell)


def teacher_source(wildcards):
    """File or timm name of the dataset's teacher, '' if there is none."""
    return cells.teacher_path(STUDY, wildcards.dataset) or ""


def teacher_file(wildcards):
    """The teacher as an input: nothing if there is none, or if timm has it."""
    source = teacher_source(wildcards)
    return [] if not source or source.startswith("timm:") else source


def labels_file(wildcards):
    """What soft labels of students come from: stored answers, a teacher's file, or nothing."""
    labels = STUDY.students.protocol.labels
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.set)
    if labels == "replay":
        return cells.answers_path(STUDY, cell, wildcards.scale)
    return teacher_file(wildcards) if labels == "teacher" else []


def stage1_settings(wildcards):
    """Settings of a stage-1 method as the study has them, and the key of the trained network that they name."""
    settings = STUDY.distill[wildcards.stage1].at(wildcards.dataset, int(wildcards.ipc))
    return settings, next((key for key in NETWORKS if settings.get(key) not in (None, *NO_FILE)), None)


def network_file(wildcards):
    """The trained network that a stage-1 method uses, as an input: the study's teacher, a file, or nothing."""
    settings, key = stage1_settings(wildcards)
    return [] if key is None else teacher_file(wildcards) if settings[key] == TEACHER else settings[key]


def experts_folder(wildcards):
    """Where the experts of a stage-1 method are, '' if it has none."""
    name = stage1_settings(wildcards)[0].get("experts", "")
    return name if "/" in name or not name else str(cells.experts_path(STUDY, wildcards.dataset, name))


def experts_file(wildcards):
    folder = experts_folder(wildcards)
    return f"{folder}/experts.json" if folder else []


def released_file(wildcards):
    """The file of a released set as an input, or nothing."""
    return stage1_settings(wildcards)[0].get("path") or []


def released_cells():
    """The stage-1 sets that others have released."""
    return [cell for cell in SETS if cell.stage2 == NONE and STUDY.distill[cell.stage1].method == "released"]


def departures():
    """How the settings of each stage-1 set differ from the published ones."""
    found = []
    for cell in (cell for cell in SETS if cell.stage2 == NONE):
        entry = STUDY.distill[cell.stage1]
        found.append((asdict(cell), "; ".join(STUDY.departures(entry, cell.dataset, cell.ipc))))
    return found


def recorded_networks():
    """Architectures that are, as they stand, networks of which released files record accuracies."""
    plain = {name: one.network for name, one in STUDY.students.architectures.items() if not one.options}
    known = {name: network for name, network in plain.items() if network in RECORDED.values()}
    return known if released_cells() else {}


def stage1_set(wildcards):
    return cells.set_path(STUDY, cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1))


def prior_files(wildcards):
    """The files of a local prior, so that a change of them is seen; a hub name has none."""
    return cells.prior_files(STUDY, wildcards.dataset)


def prior_source(wildcards):
    return cells.prior_path(STUDY, wildcards.dataset)


def distill_settings(wildcards):
    """Settings of a stage-1 method; the study's teacher and experts become their files."""
    settings, key = stage1_settings(wildcards)
    if key is not None and settings[key] == TEACHER:
        settings[key] = teacher_source(wildcards)
    if settings.get("experts"):
        settings["experts"] = experts_folder(wildcards)
    return settings


def recover_settings(wildcards):
    return STUDY.recover[wildcards.stage2].full()


def prior_options():
    return STUDY.prior.options().model_dump(mode="json")


def shard_classes(wildcards):
    """First class and end of a shard; None for a whole set."""
    if STUDY.shards == 1:
        return None
    return cells.shard_classes(STUDY, int(wildcards.shard), len(DATASETS[wildcards.dataset].classes))


def shard_files(wildcards):
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.stage2)
    return cells.shard_paths(STUDY, cell, len(DATASETS[wildcards.dataset].classes))


def display_names():
    """Labels and order of the study's entries for tables and figures."""
    return {
        "stage1": {**{name: entry.label for name, entry in STUDY.distill.items()}, cells.FULL: "all training images"},
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
