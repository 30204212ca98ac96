"""Helpers of all rules: the validated study, its cells and paths, and the digests of the code."""

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from snakemake.cli import parse_args
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards

SOURCE = f"{workflow.basedir}/src"
sys.path.insert(0, SOURCE)

from diver import study as cells
from diver.checks import check_study, network_path
from diver.config.base import ConfigError
from diver.config.distill import NETWORKS, TEACHER
from diver.config.native import CLUSTERING, PREPARATIONS
from diver.config.report import PUBLISHED
from diver.config.study import NONE
from diver.config.text import ATTRIBUTES, MODEL
from diver.progress import WORKFLOW_VARIABLE
from diver.provenance import code_digest
from diver.report import choices, paper, record
from diver.report.labels import names_of


def only_planned():
    """Whether this call runs no jobs of its own: a dry run, a question about the workflow, or one job of a real run,
    for which everything was there when it was started."""
    called = Path(sys.argv[0])
    # Of `python -m snakemake`, it is the package's __main__.py.
    if not workflow.is_main_process or "snakemake" not in (called.stem, called.parent.name):
        return True
    given = parse_args(sys.argv[1:])[1]
    return any(getattr(given, name, None) for name in NO_RUN)


NO_RUN = ("dryrun", "touch", "lint", "dag", "rulegraph", "filegraph", "d3dag", "summary", "detailed_summary", "report")
NO_RUN += ("list_rules", "list_target_rules", "list_changes", "list_input_changes", "list_params_changes", "unlock")
NO_RUN += ("cleanup_metadata", "delete_all_output", "archive", "print_compilation", "list_untracked", "containerize")
NO_RUN += ("list_conda_envs", "conda_create_envs_only", "conda_cleanup_envs")
GIVEN = " and ".join(map(str, workflow.configfiles)) or "the configuration"
PLANNING = only_planned()
# Files that are not here may be in the bucket, and a pod has none but those of its inputs.
STORED = workflow.storage_settings.default_storage_provider is not None

# A step ends with the Snakemake that started it.
os.environ[WORKFLOW_VARIABLE] = str(os.getpid())
# diffusers asks whether there is a GPU while it is imported, before a job has its device; asked like this, CUDA does not
# fix the devices that it sees.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

try:
    CHECKED = check_study(config, GIVEN, planning=PLANNING or STORED)
except ConfigError as fault:
    raise WorkflowError(str(fault)) from None
if CHECKED.missing and workflow.is_main_process:
    told = "names what is not here, and may be in the bucket" if STORED else "would be refused here"
    print(*[f"{GIVEN} {told}:", *CHECKED.missing], sep="\n  ", file=sys.stderr)

STUDY, DATASETS = CHECKED.study, CHECKED.datasets
RESULTS = str(cells.results_path(STUDY))
LOGS = f"{RESULTS}/logs"
# Every figure is also made for print and for the web.
PRINT = ["svg", "pdf"]
BENCHMARKS = f"{RESULTS}/benchmarks"
SETS = list(cells.set_cells(STUDY))
STUDENTS = list(cells.student_cells(STUDY))
MADE_BY_RULE = STUDY.prior.source == "trained"


wildcard_constraints:
    dataset="|".join(map(re.escape, STUDY.datasets)),
    ipc=r"\d+",
    shard=r"\d+",
    shards=r"\d+",
    stage1="|".join(map(re.escape, STUDY.distill)),
    stage2="|".join(map(re.escape, STUDY.recover)) or "none",
    experts="|".join(map(re.escape, STUDY.all_experts())),
    scale=f"{cells.MATCHED}|{cells.AS_PUBLISHED}",
    group="|".join({group: None for name in STUDY.datasets for group in cells.student_groups(STUDY, name)}),


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
    ceilings = [cells.full_path(STUDY, dataset, group) for dataset, group in cells.full_cells(STUDY)]
    return [cells.students_path(STUDY, cell) for cell in STUDENTS] + ceilings


def protocol_settings(wildcards):
    """How the students of a dataset are trained and tested."""
    return STUDY.students_at(wildcards.dataset).protocol.model_dump(mode="json")


def student_seeds(wildcards):
    return STUDY.students_at(wildcards.dataset).seeds


def student_architectures(wildcards):
    """Settings of the architectures that one job trains."""
    names = cells.student_groups(STUDY, wildcards.dataset)[wildcards.group]
    known = STUDY.students_at(wildcards.dataset).architectures
    # What they are called in tables changes nothing of their training.
    return {name: known[name].model_dump(mode="json", exclude={"label"}) for name in names}


def source_set(wildcards):
    """The set that students are trained on: recovered, or the stage-1 set itself."""
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.set)
    return cells.set_path(STUDY, cell)


def teacher_settings(wildcards):
    """The dataset's teacher, None if there is none."""
    teacher = STUDY.teacher_at(wildcards.dataset)
    return teacher.model_dump(mode="json") if teacher else None


def answering(value):
    """A teacher's settings or source, None for students that it does not answer: they do not depend on it."""

    def known(wildcards):
        return value(wildcards) if protocol_settings(wildcards)["labels"] == "teacher" else None

    return known


def teacher_source(wildcards):
    """File or timm name of the dataset's teacher, '' if there is none."""
    return cells.teacher_path(STUDY, wildcards.dataset) or ""


def teacher_file(wildcards):
    """The teacher as an input: nothing if there is none, or if timm has it."""
    source = teacher_source(wildcards)
    if not source or source.startswith("timm:"):
        return []
    return source if STUDY.teacher_at(wildcards.dataset).source == "trained" else here([source])


def teacher_paths():
    """The teachers that this study trains."""
    teachers = {dataset: STUDY.teacher_at(dataset) for dataset in STUDY.datasets}
    trained = [dataset for dataset, teacher in teachers.items() if teacher is not None and teacher.source == "trained"]
    return [cells.teacher_path(STUDY, dataset) for dataset in trained]


def labels_file(wildcards):
    """What soft labels of students come from: stored answers, a teacher's file, or nothing."""
    labels = STUDY.students_at(wildcards.dataset).protocol.labels
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.set)
    if labels == "replay":
        return cells.answers_path(STUDY, cell, wildcards.scale)
    return teacher_file(wildcards) if labels == "teacher" else []


def stage1_settings(wildcards):
    """Settings of a stage-1 method as the study has them."""
    return STUDY.distill[wildcards.stage1].at(wildcards.dataset, int(wildcards.ipc))


def here(paths):
    """Files from outside as inputs. A plan goes on without those that are missing, which were told."""
    return [path for path in paths if path and (STORED or not PLANNING or Path(path).exists())]


def one_here(path):
    """As `here`, of one file that a step reads by its name."""
    return next(iter(here([path])), [])


def network_file(wildcards):
    """The trained network that a stage-1 method uses, as an input: the study's teacher, a file, or nothing."""
    settings = stage1_settings(wildcards)
    if any(settings.get(key) == TEACHER for key in NETWORKS):
        return teacher_file(wildcards)
    return here([network_path(settings)])


def experts_folder(wildcards):
    """Where the experts of a stage-1 method are, '' if it has none."""
    name = stage1_settings(wildcards).get("experts", "")
    return name if "/" in name or not name else str(cells.experts_path(STUDY, wildcards.dataset, name))


def experts_file(wildcards):
    folder = experts_folder(wildcards)
    if not folder:
        return []
    manifest = f"{folder}/experts.json"
    return manifest if folder.startswith(f"{RESULTS}/experts/") else here([manifest])


def released_file(wildcards):
    """The files of a released set as inputs, or nothing. Of a folder Snakemake would see only what is added to it."""
    path = stage1_settings(wildcards).get("path")
    return here(cells.released_files(path)) if path else []


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
    settings = stage1_settings(wildcards)
    for key in NETWORKS:
        if settings.get(key) == TEACHER:
            settings[key] = teacher_source(wildcards)
    if settings.get("experts"):
        settings["experts"] = experts_folder(wildcards)
    return settings


def recover_settings(wildcards):
    return STUDY.recover[wildcards.stage2].full(wildcards.stage1)


def caption_files(wildcards):
    """Files that the captions come from: of the captions and of the images' names, if the study gives any."""
    settings = STUDY.preparations.captions
    made = (ATTRIBUTES, MODEL)
    given = [None if settings.source in made else settings.source, settings.names]
    return here([path.replace("{dataset}", wildcards.dataset) for path in given if path])


def artefacts_before_texts(wildcards):
    """What the texts of EDITS and VLCP are made from."""
    return [path for name, path in artefacts_of_set(wildcards).items() if name != "texts"]


def prior_options():
    return STUDY.prior.options().model_dump(mode="json")


def shard_classes(wildcards):
    """First class and end of a shard; None for a whole set."""
    shards, count = STUDY.shards_at(wildcards.dataset), len(DATASETS[wildcards.dataset].classes)
    return None if shards == 1 else cells.shard_classes(shards, int(wildcards.shard), count)


def sharded(shards):
    """Pattern of the datasets whose sets are recovered in shards, or whole; one that nothing fits, if there is none."""
    return "|".join(re.escape(name) for name in STUDY.datasets if (STUDY.shards_at(name) > 1) == shards) or "(?!)"


def shard_files(wildcards):
    cell = cells.SetCell(wildcards.dataset, int(wildcards.ipc), wildcards.stage1, wildcards.stage2)
    return cells.shard_paths(STUDY, cell, len(DATASETS[wildcards.dataset].classes))


DISPLAYED = {name: spec.shown for name, spec in DATASETS.items()}
PUBLISHED_NAMES = {name: spec.published_name for name, spec in DATASETS.items()}
PAPER_TABLES = paper.plans(STUDY, PUBLISHED_NAMES)
PUBLISHED_NUMBERS = STUDY.report.published or PUBLISHED
SHOWN = cells.shown_cell(STUDY)


def display_names():
    """Labels and order of the study's entries for tables and figures."""
    return names_of(STUDY, DISPLAYED)


def no_wildcards(text):
    """A text that Snakemake takes as it is where no function can give it: braces with an invisible character inside."""
    return text.replace("{", "{\N{WORD JOINER}")


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


def study_text(wildcards):
    """The study's configuration; a function, since braces in it are no wildcards."""
    return yaml.safe_dump(STUDY.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=100)


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
