# From run folders to tidy tables, and from those to the tables of the paper.


rule collect:
    """A row per run, epoch, spectrum and cosine."""
    input:
        plan=rules.plan.output,
        runs=finished_runs,
        script="workflow/scripts/collect.py",
        measures="rankcollapse/ranks.py",
    output:
        multiext(f"{RESULTS}/tables/", "runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv"),
    log:
        f"{RESULTS}/logs/collect.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        runs=f"{RESULTS}/runs",
        out=f"{RESULTS}/tables",
    shell:
        "{PYTHON} {input.script} --plan {input.plan} --runs {params.runs} --out {params.out} 2>&1 | tee {log:q} >&2"
