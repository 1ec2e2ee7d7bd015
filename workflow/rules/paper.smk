# The replication paper, made of the figures and the summaries, and the record of what they stand on.


rule provenance:
    """Versions, config hash, machine, date and seconds behind the tables."""
    input:
        tables=rules.collect.output,
        plan=rules.plan.output,
        script="workflow/scripts/provenance.py",
    output:
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/provenance.log",
    benchmark:
        f"{RESULTS}/benchmarks/provenance.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        runs=lambda wildcards, input: input.tables[0],
        about=json.dumps({"preset": config["preset"], "title": config.get("title", "")}),
    shell:
        "python {input.script} --runs {params.runs} --plan {input.plan} --about {params.about:q} --out {output}"
        " 2>&1 | tee {log:q} >&2"


rule paper:
    """The PDF, by typst. Its numbers come from the summaries alone."""
    input:
        summaries=rules.summarise.output,
        claims=rules.claims.output,
        provenance=rules.provenance.output,
        figures=expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=FIGURE_TITLES, kind=["svg", "txt"]),
        text="paper/paper.typ",
        references="paper/references.bib",
        script="workflow/scripts/paper.py",
    output:
        report(
            f"paper/{config['preset']}/replication.pdf",
            category="Paper",
            labels={"paper": "replication"},
            caption="../report/paper.rst",
        ),
    log:
        f"{RESULTS}/logs/paper.log",
    benchmark:
        f"{RESULTS}/benchmarks/paper.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        inputs=json.dumps(
            {
                "preset": config["preset"],
                "labels": {arm: look["label"] for arm, look in config["arms"].items()},
                "studies": {name: study.get("title", name) for name, study in STUDIES.items()},
            }
        ),
    shell:
        "python {input.script} {input.text} --inputs {params.inputs:q} --out {output} 2>&1 | tee {log:q} >&2"
