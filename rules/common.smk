"""Helpers of all rules: the validated study, its cells and paths, and the digests of the code."""

import re
import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

SOURCE = f"{workflow.basedir}/src"
sys.path.insert(0, SOURCE)

from diver import study as cells
from diver.config.base import ConfigError
from diver.config.distill import NETWORKS, PIXELS, TEACHER
from diver.config.report import PUBLISHED
from diver.config.study import NONE, parse_study
from diver.data.spec import SpecError, load_dataset_spec
from diver.provenance import code_digest
from diver.report import choices, paper, record
from diver.report.labels import names_of

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


def departures():
    """How the settings of each stage-1 set differ from the published ones."""
    return [(asdict(cell), text) for cell, text in choices.departures(STUDY).items()]


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


DISPLAYED = {name: spec.label or name for name, spec in DATASETS.items()}


PAPER_TABLES = paper.plans(STUDY, DISPLAYED)


def display_names():
    """Labels and order of the study's entries for tables and figures."""
    return names_of(STUDY, DISPLAYED)


def trace_path():
    """The trajectory that is pictured, at the largest IPC."""
    return str(choices.trace_path(STUDY))


def students_so_far(wildcards):
    """Tables of the students that there are, as a parameter and no input: nothing is trained for them."""
    return [str(path) for path in student_paths() if Path(path).exists()]


def no_such_target(wildcards):
    """Says which of the publication's tables and figures the study has."""
    wanted = f"{wildcards.kind}_{wildcards.name}"
    known = [*STUDY.report.tables, *FIGURE_TARGETS]
    told = f"it has {', '.join(known)}" if known else "it has none; a study may describe some under report.tables"
    raise WorkflowError(f"the study {STUDY.name!r} has no {wanted}; {told}")


def recorded_files():
    """The files behind the tables: data, sets and students."""
    return [*map(str, prepared_paths()), *map(str, [*set_paths(False), *set_paths(True), *student_paths()])]


def prepared_paths():
    return [cells.prepared_path(dataset) for dataset in STUDY.datasets]


def producer(path):
    """The rule that makes a file, None for a file that none makes."""
    makers = (one for one in workflow.rules if one.name != "unknown_table_or_figure" and one.output)
    return next((one for one in makers if one.is_producer(path)), None)


def artifacts(wildcards, input):
    """Each file with the rule that makes it and the digest of that rule's code."""
    found = []
    for path in dict.fromkeys(map(str, input)):
        maker = producer(path)
        of_code = dict(maker.params.items()).get("code", "") if maker else ""
        found.append({"file": path, "rule": maker.name if maker else "", "code": of_code})
    return found


def rule_edges(wildcards):
    """(needed rule, needing rule) of everything that the tables and figures need, from the rules' own inputs."""
    edges, seen = set(), set()
    todo = [(path, "report") for path in map(str, rules.tables_and_figures.input)]
    while todo:
        path, needing = todo.pop()
        maker = producer(path)
        if maker is None:
            continue
        edges.add((maker.name, needing))
        if path not in seen:
            seen.add(path)
            needed, *_ = maker.expand_input(Wildcards(fromdict=maker.get_wildcards(path)))
            todo += [(str(one), maker.name) for one in needed]
    return sorted(edges)


def rule_phases(wildcards):
    """The phase of each rule: the name of the file that it stands in."""
    return {**{one.name: Path(str(one.snakefile)).stem for one in workflow.rules}, "report": "report"}
