# From run folders to tidy tables, and from those to summaries, figures, pages and the paper.
SUMMARIES = ["accuracy", "ranks", "progress", "alignment", "norms", "cost", "claims"]


rule collect:
    """A row per run, epoch, spectrum, cosine and norm."""
    input:
        finished_runs,
        "workflow/scripts/collect.py",
        "rankcollapse/ranks.py",  # a new measure tabulates anew, and trains nothing
    output:
        multiext(f"{RESULTS}/tables/", "runs.csv", "epochs.csv", "ranks.csv.gz", "alignment.csv.gz", "norms.csv.gz"),
    log:
        f"{RESULTS}/logs/collect.log",
    conda:
        "../../envs/render.yaml"
    params:
        planned=[f"{name}: {run.rate}" for name, run in RUNS.items()],
    shell:
        f"python workflow/scripts/collect.py {RESULTS} 2>&1 | tee {{log:q}} >&2"


rule summarise:
    """Mean, standard deviation and n over seeds, a verdict on each claim, and the record of what they stand on."""
    input:
        rules.collect.output,
        multiext("paper/", "published.yaml", "claims.yaml"),
        multiext("workflow/scripts/", "summarise.py", "claims.py", "findings.py", "analysis.py"),
    output:
        expand(f"{RESULTS}/summary/{{table}}.csv", table=SUMMARIES),
        report(f"{RESULTS}/summary/findings.txt", category="What holds", caption="../report/findings.rst"),
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/summarise.log",
    conda:
        "../../envs/render.yaml"
    params:
        title=GRID.title,  # of the plan, which is no input
    shell:
        f"python workflow/scripts/summarise.py {RESULTS} paper 2>&1 | tee {{log:q}} >&2"


rule figure:
    """One figure as SVG and PDF, with its caption. A change of its script, the tables or an arm's look redraws it."""
    input:
        rules.collect.output,
        TUNED,
        "workflow/scripts/figures/{figure}.py",
        multiext("workflow/scripts/", "drawing.py", "analysis.py"),
    output:
        svg=report(
            f"{FIGURES}/{{figure}}.svg",
            category="Figures",
            labels=lambda wildcards: {"figure": TITLES[wildcards.figure]},
            caption="../report/figure.rst",
        ),
        pdf=f"{FIGURES}/{{figure}}.pdf",
        caption=f"{FIGURES}/{{figure}}.txt",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    conda:
        "../../envs/render.yaml"
    params:
        looks=json.dumps(LOOKS),
    shell:
        "python workflow/scripts/figures/{wildcards.figure}.py --looks {params.looks:q}"
        f" --tables {RESULTS}/tables --tuned {TUNED!r} --out {FIGURES}/{{wildcards.figure}} 2>&1 | tee {{log:q}} >&2"


rule pages:
    """Each summary as a table of the HTML report; READMEs with the columns of all tables, and all figures."""
    input:
        rules.collect.output,
        rules.summarise.output,
        TUNED,
        expand(f"{FIGURES}/{{figure}}.txt", figure=TITLES),
        "workflow/scripts/pages.py",
        "workflow/report/columns.yaml",
    output:
        f"{RESULTS}/README.md",
        f"{FIGURES}/README.md",
        [
            report(
                f"{RESULTS}/pages/{table}.html",
                category="Tables",
                labels={"table": table},
                caption="../report/table.rst",
            )
            for table in [*SUMMARIES, "tuned"]
        ],
    log:
        f"{RESULTS}/logs/pages.log",
    conda:
        "../../envs/render.yaml"
    params:
        names=NAMES,
    shell:
        f"python workflow/scripts/pages.py {RESULTS} {FIGURES} {TUNED!r} {{params.names:q}} 2>&1 | tee {{log:q}} >&2"


rule paper:
    """The PDF, by typst. Its numbers come from the summaries alone."""
    input:
        rules.summarise.output,
        TUNED,
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "txt"]),
        multiext("paper/", "paper.typ", "references.bib"),
        BENCHMARKS,
        "workflow/scripts/paper.py",
    output:
        report(
            f"paper/{GRID.preset}/replication.pdf",
            category="Paper",
            labels={"paper": "replication"},
            caption="../report/paper.rst",
        ),
    log:
        f"{RESULTS}/logs/paper.log",
    conda:
        "../../envs/render.yaml"
    params:
        names=NAMES,
    shell:
        "python workflow/scripts/paper.py paper/paper.typ {params.names:q} {output} 2>&1 | tee {log:q} >&2"


MADE = [
    *([] if GRID.tuned else [TUNED]),
    *rules.collect.output,
    *rules.summarise.output,
    *expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "pdf", "txt"]),
    *rules.pages.output,
    *rules.paper.output,
]


rule seal:
    """The sha256 of all that was made: `make verify` checks it, and what is not as it was sealed is made again."""
    input:
        finished_runs,
        *MADE,
        "workflow/scripts/seal.py",
    output:
        f"{RESULTS}/manifest.json",
    log:
        f"{RESULTS}/logs/seal.log",
    conda:
        "../../envs/render.yaml"
    params:
        made=MADE,
    shell:
        f"python workflow/scripts/seal.py {RESULTS} {{params.made}} 2>&1 | tee {{log:q}} >&2"
