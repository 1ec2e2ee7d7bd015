# The second stage: a job a run, algorithm x architecture x dataset x seed, and the tables of them all.


use rule candidate as train with:
    input:
        trained,
        choices,
    output:
        f"{RESULTS}/runs/{plan.NAME}/run.json",
    log:
        f"{RESULTS}/logs/train/{plan.NAME}.log",
    priority: lambda wildcards: PRIORITIES[planned(wildcards).name]


localrules:
    collect,


rule collect:
    """A row per run, epoch, spectrum, cosine and norm."""
    input:
        finished_runs,
        ours("rankcollapse/library/ranks.py"),  # a new measure tabulates anew, and trains nothing
        ours("rankcollapse/experiment/collect.py"),
    output:
        TABLES,
    log:
        f"{RESULTS}/logs/collect.log",
    conda:
        "../../envs/render.yaml"
    params:
        planned=[f"{name}: {run.rate}" for name, run in RUNS.items()],
    shell:
        f"python -m rankcollapse collect {RESULTS} $KEEP 2>&1 | tee {{log:q}} >&2"
