"""The paper, compiled by typst from tables of text, captions and pictures: it reads no file, and may lie anywhere."""

import json
from pathlib import Path

import pandas as pd
import typst

from rankcollapse.experiment import config, files
from rankcollapse.experiment.collect import read
from rankcollapse.render.findings import depth_table
from rankcollapse.render.text import shown


def inputs(names: dict, results: Path, figures: Path) -> dict[str, str]:
    """What the text is made of, as JSON, by name."""
    paths = [Path(names["tuned"]), *sorted((results / "summary").glob("*.csv"))]
    summaries = {"tuned" if path == paths[0] else path.stem: shown(read(path), names) for path in paths}
    made = {
        "preset": names["preset"],
        "provenance": config.read(results / "provenance.json"),
        "findings": (results / "summary" / "findings.txt").read_text(encoding="utf-8").split("\n")[:-1],
        "depth": depth_table(summaries["claims"]),
        "tables": {name: table.to_dict("records") for name, table in summaries.items()},
        "benchmarks": [shown(pd.read_csv(path), {}).to_dict("records") for path in names["benchmarks"]],
        "figures": {
            name: [(figures / f"{name}.{kind}").read_text(encoding="utf-8").strip() for kind in ("svg", "txt")]
            for name in names["figures"]
        },
    }
    return {"made": json.dumps(made)}


def paper(text: Path, names: dict, results: Path, figures: Path, out: Path) -> None:
    files.write_bytes(
        out, typst.compile(str(text), sys_inputs=inputs(names, results, figures), ignore_system_fonts=True)
    )
