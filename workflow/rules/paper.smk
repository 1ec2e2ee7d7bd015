# The replication paper, made of the figures and the summaries, and the record of what they stand on.


rule provenance:
    """Versions, hashes of code and config, machine, date and seconds behind the tables."""
    input:
        rules.collect.output,
        multiext("workflow/scripts/", "provenance.py", "analysis.py"),
    output:
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/provenance.log",
    conda:
        "../../envs/render.yaml"
    params:
        about=json.dumps({"preset": GRID.preset, "title": GRID.title}),
    shell:
        "python workflow/scripts/provenance.py --tables {RESULTS}/tables --plan {PLAN} --about {params.about:q}"
        " --out {output} 2>&1 | tee {log:q} >&2"


rule paper:
    """The PDF, by typst. Its numbers come from the summaries alone."""
    input:
        rules.summarise.output,
        rules.claims.output,
        rules.provenance.output,
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "txt"]),
        multiext("paper/", "paper.typ", "references.bib"),
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
        inputs=json.dumps(PAPER, sort_keys=True),
    shell:
        "python workflow/scripts/paper.py paper/paper.typ --inputs {params.inputs:q} --out {output} 2>&1 | tee {log:q} >&2"
