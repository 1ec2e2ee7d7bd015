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
        out=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python {input.script} --plan {input.plan} --runs {params.runs} --out {params.out} 2>&1 | tee {log:q} >&2"


rule summarise:
    """Mean, standard deviation and n over seeds."""
    input:
        tables=rules.collect.output,
        published="paper/published.yaml",
        script="workflow/scripts/summarise.py",
    output:
        accuracy=report(
            f"{RESULTS}/summary/accuracy.csv",
            category="Tables",
            labels={"table": "accuracy"},
            caption="../report/accuracy.rst",
        ),
        ranks=report(
            f"{RESULTS}/summary/ranks.csv",
            category="Tables",
            labels={"table": "effective ranks"},
            caption="../report/ranks.rst",
        ),
        alignment=report(
            f"{RESULTS}/summary/alignment.csv",
            category="Tables",
            labels={"table": "alignment"},
            caption="../report/alignment.rst",
        ),
        cost=report(
            f"{RESULTS}/summary/cost.csv",
            category="Tables",
            labels={"table": "cost"},
            caption="../report/cost.rst",
        ),
    log:
        f"{RESULTS}/logs/summarise.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarise.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        tables=lambda wildcards, input: os.path.dirname(input.tables[0]),
        out=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python {input.script} --tables {params.tables} --published {input.published} --out {params.out}"
        " 2>&1 | tee {log:q} >&2"


rule claims:
    """Each statement of the paper, ours beside it, and a verdict."""
    input:
        tables=rules.collect.output,
        claims="paper/claims.yaml",
        script="workflow/scripts/claims.py",
        finished="workflow/scripts/summarise.py",
    output:
        report(
            f"{RESULTS}/summary/claims.csv",
            category="Tables",
            labels={"table": "claims"},
            caption="../report/claims.rst",
        ),
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        tables=lambda wildcards, input: os.path.dirname(input.tables[0]),
    shell:
        "python {input.script} --claims {input.claims} --tables {params.tables} --out {output}"
        " 2>&1 | tee {log:q} >&2"
