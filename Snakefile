# The study: raw data -> prepared data -> stage 1 -> stage 2 -> students -> tables, figures, report.
#   snakemake --cores all                                    the embedded study (config/default.yaml)
#   snakemake --cores all --configfile config/test.yaml      another study
#   snakemake data | distill | recover | students | report   one phase
from snakemake.utils import min_version

min_version("9.0")

if not workflow.configfiles:

    configfile: "config/default.yaml"


report: "src/diver/report/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/prior.smk"
include: "rules/distill.smk"
include: "rules/native_common.smk"
include: "rules/native.smk"
include: "rules/recover.smk"
include: "rules/students.smk"
include: "rules/report.smk"
include: "rules/record.smk"


check_pool()


rule all:
    default_target: True
    input:
        rules.report.input,
