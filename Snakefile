# Everything: snakemake --cores all --use-conda. The grid is config.yaml; presets/ are smaller ones, by --configfile.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


include: "workflow/common.smk"
include: "workflow/mend.smk"
include: "workflow/slurm.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/results.smk"


report: "workflow/report/workflow.rst"


onstart:
    start()
    meet_slurm()


onsuccess:
    print(*edge_lines(), sep="\n", file=sys.stderr)


rule all:
    default_target: True
    input:
        finished_runs,
        TUNED,
        rules.collect.output,
        rules.summarise.output,
        rules.pages.output,
        rules.paper.output,
        rules.seal.output,
