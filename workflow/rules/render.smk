# The third stage: from the tables alone to summaries, claims, figures, pages and the paper.
from rankcollapse.render.figures import titles
from rankcollapse.render.together import COMMITTED, beside, place

SUMMARIES = [
    "accuracy",
    "ranks",
    "progress",
    "alignment",
    "norms",
    "cost",
    "joined",
    "gains",
    "mediation",
    "rules",
    "heldout",
    "claims",
]
TITLES = titles()
# The report sorts its lists by letter: numbers have one width, with a space as wide as a digit.
LISTED = {name: title.rjust(len(title) + (title.index(".") < 2), "\u2007") for name, title in TITLES.items()}
LOOKS = {
    "arms": {name: arm.model_dump(exclude={"run"}) for name, arm in GRID.arms.items()},
    "studies": {study.name: study.title or study.name for study in GRID.studies},
    "shown": {study.name: [*study.arms] if study.shown is None else study.shown for study in GRID.studies},
}
NAMES = {"title": GRID.title or GRID.preset, "tuned": TUNED, "looks": LOOKS}
if ALONE and not ONLY_ASKS:
    files.write_json(f"{RESULTS}/names.json", NAMES)
BESIDE = beside(GRID.preset)
SUMMARISED = [*expand(f"{RESULTS}/summary/{{table}}.csv", table=SUMMARIES), f"{RESULTS}/summary/findings.txt"]


wildcard_constraints:
    figure="|".join(TITLES),


localrules:
    summarise,
    figure,
    pages,
    paper,
    seal,


rule summarise:
    """Mean, standard deviation and n over seeds, a verdict on each claim, and the record of what they stand on."""
    input:
        TABLES,
        ours("paper/published.yaml", "paper/claims.yaml", "paper/findings.yaml", "config.yaml"),
        ours(*(f"rankcollapse/render/{name}.py" for name in ("summaries", "claims", "evidence", "findings"))),
        ours(*(f"rankcollapse/render/{name}.py" for name in ("joined", "mediation", "tables", "text"))),
    output:
        SUMMARISED,
        f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/summarise.log",
    conda:
        "../../envs/render.yaml"
    params:
        title=GRID.title,
    shell:
        f"python -m rankcollapse.render summarise {RESULTS} 2>&1 | tee {{log:q}} >&2"


rule figure:
    """One figure as SVG and PDF, with its caption. A change of its code, the tables or an arm's look redraws it."""
    input:
        TABLES,
        TUNED,
        ours(*(f"rankcollapse/render/{name}.py" for name in ("figures/{figure}", "drawing", "tables", "text"))),
        ours("rankcollapse/render/joined.py", "rankcollapse/render/mediation.py", "paper/published.yaml"),
    output:
        svg=report(
            f"{FIGURES}/{{figure}}.svg",
            category="2. Figures",
            labels=lambda wildcards: {"figure": LISTED[wildcards.figure]},
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
        f"python -m rankcollapse.render figure {RESULTS} {{wildcards.figure}} 2>&1 | tee {{log:q}} >&2"


rule pages:
    """READMEs with all claims, the columns of all tables, and all figures; the same as pages of the HTML report."""
    input:
        TABLES,
        SUMMARISED,
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "txt"]),
        TUNED,
        ours(*(f"rankcollapse/render/{name}.py" for name in ("pages", "questions", "findings", "text"))),
        ours("rankcollapse/render/columns.yaml", "rankcollapse/render/pages.css"),
    output:
        f"{RESULTS}/README.md",
        f"{FIGURES}/README.md",
        report(
            f"{RESULTS}/pages/holds.html",
            category="1. What holds",
            labels={"page": "every question, its claims and their verdicts"},
            caption="../report/holds.rst",
        ),
        [
            report(
                f"{RESULTS}/pages/{table}.html",
                category="3. Tables",
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
        names=json.dumps(NAMES, sort_keys=True),  # the same names in another order make nothing anew
    shell:
        f"python -m rankcollapse.render pages {RESULTS} 2>&1 | tee {{log:q}} >&2"


rule paper:
    """The report as PDF, by typst: of this preset, or of all whose results are committed. It reads the summaries alone."""
    input:
        SUMMARISED,
        expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "txt"]),
        TUNED,
        BESIDE,
        ours(*(f"paper/{name}" for name in ("paper.typ", "findings.yaml", "references.bib", "published.yaml"))),
        ours(*(f"rankcollapse/render/{name}.py" for name in ("paper", "overview", "evidence", "findings", "text"))),
    output:
        report(
            str(place(GRID.preset)),
            category="4. Paper",
            labels={"paper": "replication"},
            caption="../report/paper.rst",
        ),
    log:
        f"{RESULTS}/logs/paper.log",
    conda:
        "../../envs/render.yaml"
    params:
        names=json.dumps(NAMES, sort_keys=True),  # the same names in another order make nothing anew
    shell:
        f"python -m rankcollapse.render paper {RESULTS} 2>&1 | tee {{log:q}} >&2"


RENDERED = [
    *rules.summarise.output,
    *expand(f"{FIGURES}/{{figure}}.{{kind}}", figure=TITLES, kind=["svg", "pdf", "txt"]),
    *rules.pages.output,
]
# All of it is asked for, here and by `all`: Snakemake does not miss what no one asks for.
SEALED = [*TABLES, *CHOSEN, *RENDERED]
if GRID.preset not in COMMITTED:  # whose report has other presets in it, and is theirs as well
    SEALED += rules.paper.output


rule seal:
    """The sha256 of all tables and all that is made of them: `make verify` checks it, and what is not as it was sealed
    is made again.
    """
    input:
        SEALED,
    output:
        f"{RESULTS}/manifest.json",
    log:
        f"{RESULTS}/logs/seal.log",
    conda:
        "../../envs/render.yaml"
    shell:
        f"python -m rankcollapse seal {RESULTS} {{input:q}} 2>&1 | tee {{log:q}} >&2"


rule render:
    """All that people read. Asked for by name it is made from the tables that are there, and nothing is trained."""
    input:
        RENDERED,
        rules.paper.output,
        f"{RESULTS}/manifest.json",
