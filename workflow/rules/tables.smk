# From run folders to tidy tables, and from those to the tables of the paper.


rule collect:
    """A row per run, epoch, spectrum and cosine."""
    input:
        finished_runs,
        "workflow/scripts/collect.py",
        multiext("rankcollapse/", "ranks.py", "spectra.py"),  # a new measure tabulates anew, and trains nothing
    output:
        multiext(f"{RESULTS}/tables/", "runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv"),
    log:
        f"{RESULTS}/logs/collect.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect.tsv"
    conda:
        "../../envs/render.yaml"
    params:
        planned=list(RUNS),
    shell:
        "python workflow/scripts/collect.py --plan {PLAN} --runs {RESULTS}/runs --out {RESULTS}/tables 2>&1 | tee {log:q} >&2"


rule summarise:
    """Mean, standard deviation and n over seeds, and what they stand on."""
    input:
        rules.collect.output,
        "paper/published.yaml",
        multiext("workflow/scripts/", "summarise.py", "analysis.py"),
    output:
        expand(f"{RESULTS}/summary/{{table}}.csv", table=["accuracy", "ranks", "alignment", "cost"]),
    log:
        f"{RESULTS}/logs/summarise.log",
    conda:
        "../../envs/render.yaml"
    shell:
        "python workflow/scripts/summarise.py --tables {RESULTS}/tables --published paper/published.yaml"
        " --out {RESULTS}/summary 2>&1 | tee {log:q} >&2"


rule claims:
    """Each statement of the paper, ours beside it, and a verdict."""
    input:
        rules.collect.output,
        "paper/claims.yaml",
        multiext("workflow/scripts/", "claims.py", "analysis.py"),
    output:
        f"{RESULTS}/summary/claims.csv",
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../../envs/render.yaml"
    params:
        names=json.dumps(known_names()),
    shell:
        "python workflow/scripts/claims.py --claims paper/claims.yaml --tables {RESULTS}/tables --names {params.names:q}"
        " --out {output} 2>&1 | tee {log:q} >&2"


rule table_page:
    """A summary as a table in the HTML report."""
    input:
        f"{RESULTS}/summary/{{table}}.csv",
        "workflow/scripts/pages.py",
        "workflow/report/columns.yaml",
    output:
        report(
            f"{RESULTS}/pages/{{table}}.html",
            category="Tables",
            labels=lambda wildcards: {"table": wildcards.table},
            caption="../report/table.rst",
        ),
    log:
        f"{RESULTS}/logs/pages/{{table}}.log",
    conda:
        "../../envs/render.yaml"
    params:
        labels=json.dumps(LABELS, sort_keys=True),
    shell:
        "python workflow/scripts/pages.py summary {input[0]} --title {wildcards.table} --labels {params.labels:q}"
        " --out {output} 2>&1 | tee {log:q} >&2"


rule pages:
    """What each column means, and all figures with their captions, for a browser of the repository."""
    input:
        rules.collect.output,
        rules.summarise.output,
        rules.claims.output,
        expand(f"{RESULTS}/pages/{{table}}.html", table=["claims", "accuracy", "ranks", "alignment", "cost"]),
        expand(f"{FIGURES}/{{figure}}.txt", figure=TITLES),
        "workflow/scripts/pages.py",
        "workflow/report/columns.yaml",
    output:
        tables=f"{RESULTS}/README.md",
        figures=f"{FIGURES}/README.md",
    log:
        f"{RESULTS}/logs/pages.log",
    conda:
        "../../envs/render.yaml"
    params:
        title=GRID.title or GRID.preset,
        titles=json.dumps(TITLES),
    shell:
        "(python workflow/scripts/pages.py tables {RESULTS} --title {params.title:q} --out {output.tables} &&"
        " python workflow/scripts/pages.py figures {FIGURES} --title {params.title:q} --labels {params.titles:q}"
        " --out {output.figures}) 2>&1 | tee {log:q} >&2"
