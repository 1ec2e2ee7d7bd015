# The figures. Each is redrawn when its own script, the tables, or the look of an arm that it shows changes.


wildcard_constraints:
    figure="|".join(FIGURE_TITLES),


rule figure:
    """One figure as SVG and PDF, with its caption."""
    input:
        tables=rules.collect.output,
        script="workflow/scripts/figures/{figure}.py",
        common="workflow/scripts/figures/common.py",
        imported=lambda wildcards: FIGURE_IMPORTS.get(wildcards.figure, []),
    output:
        svg=report(
            f"{FIGURES}/{{figure}}.svg",
            category="Figures",
            labels=lambda wildcards: {"figure": FIGURE_TITLES[wildcards.figure]},
            caption="../report/figure.rst",
        ),
        pdf=f"{FIGURES}/{{figure}}.pdf",
        caption=f"{FIGURES}/{{figure}}.txt",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/{{figure}}.tsv"
    conda:
        "../../envs/render.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        grid=lambda wildcards: figure_grid(wildcards.figure),
        tables=lambda wildcards, input: os.path.dirname(input.tables[0]),
        out=lambda wildcards, output: os.path.splitext(output.svg)[0],
    shell:
        "python {input.script} --tables {params.tables} --grid {params.grid:q} --out {params.out}"
        " 2>&1 | tee {log:q} >&2"
