# The figures. Each is redrawn when its own script, the tables, or the look of an arm changes.


rule figure:
    """One figure as SVG and PDF, with its caption."""
    input:
        rules.collect.output,
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
        "python workflow/scripts/figures/{wildcards.figure}.py --tables {RESULTS}/tables --looks {params.looks:q}"
        " --out {FIGURES}/{wildcards.figure} 2>&1 | tee {log:q} >&2"
