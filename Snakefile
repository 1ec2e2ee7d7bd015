# Everything: snakemake --cores all --use-conda. The grid is config.yaml; presets/ are smaller ones, by --configfile.
# Three stages with files between them: tune writes results/<preset>/tuned.csv, train results/<preset>/tables/, and
# render reads those alone: `snakemake render` trains nothing.
from snakemake.utils import min_version

min_version("9.27")


configfile: f"{workflow.basedir}/config.yaml"


include: "workflow/common.smk"
include: "workflow/workarounds.smk"


if not RENDER_ONLY:

    include: "workflow/rules/tune.smk"
    include: "workflow/rules/train.smk"


include: "workflow/rules/render.smk"


report: "workflow/report/workflow.rst"


onstart:
    without_timers()
    with_slurm()
    start()


onsuccess:
    print(*edge_lines(), sep="\n", file=sys.stderr)


rule all:
    default_target: True
    input:
        [] if RENDER_ONLY else [begun_candidates, finished_runs],
        SEALED,
        rules.paper.output,
        f"{RESULTS}/manifest.json",
