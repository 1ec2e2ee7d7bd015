"""The section "Changing it" followed to the letter: every addition made in the files that it names, and in no other."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pypdf import PdfReader
from test_workflow import ROOT, append, copy_project, snakemake

pytestmark = pytest.mark.workflow

ARM = '  fa+mine: {label: Mine, colour: "#123456", marker: d, line: "-", run: {rule: mine}}\n'
RULE = '''

@dataclass(frozen=True)
class Mine(FeedbackAlignment):
    """Feedback alignment whose B shrinks."""

    def after_step(self, model: nn.Module, keep: float) -> None:
        for layer in feedback_layers(model).values():
            layer.feedback.mul_(0.999)


RULES["mine"] = Mine()
'''
NORM = '''

def plain(channels: int, convolutional: bool) -> nn.Module:
    """Of each image, without a gain or a shift."""
    return nn.GroupNorm(1, channels, affine=False)


NORMALIZATIONS["plain"] = plain
'''
UPDATE = '''

def half(update: Tensor) -> Tensor:
    """Half the update."""
    return update / 2
'''
ARCHITECTURE = '''

def tower(shape: tuple[int, int, int], classes: int, width: int, storeys: int, normalization: str) -> nn.Module:
    """Layers of one width with group normalisation."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))
    for i in range(storeys):
        _add(net, f"storey{i}", nn.Linear(width, width), normalization)
        net.append(nn.GroupNorm(2, width))
    net.add_module("head", nn.Linear(width, classes))
    return net


ARCHITECTURES["tower"] = tower
'''
DATA = """

def _waves(data_dir: Path, download: bool) -> tuple[Arrays, Arrays]:
    x = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (360, 6, 6, 1), dtype=np.uint8)
    y = np.arange(360) % 4
    x[:, 0, 0, 0] = 60 * y
    return (x[:300], y[:300]), (x[300:], y[300:])


SETS["waves"] = DataSet("waves", "Waves", 4, (1, 6, 6), 300, 60, (0.5,), (0.3,), _waves)
"""
FIGURE = '''"""18. Losses at the end.

A point per run.
"""

from rankcollapse.render import drawing
from rankcollapse.render.tables import finished

SHOWN = "not intervention"
SPREAD = ""


def data(tables):
    return tables["runs"]


def draw(table, looks):
    grid = drawing.facets(table, height=2)
    drawing.points(grid, "test_accuracy", "test_loss", looks)
    drawing.legend(grid, looks, linewidth=0)
    return grid.set_axis_labels("test accuracy, %", "test loss, nats")


def caption(table):
    return f"Test losses at the end of {len(finished(table))} runs."

'''
CLAIM = """
- id: mine-below-bp
  statement: Mine is below BP on waves
  source: ours
  study: mine
  dataset: waves
  quantity: accuracy
  left: fa+mine
  relation: less
  right: bp
"""
STUDY = {
    "name": "mine",
    "datasets": ["waves"],
    "run": {"architecture": "tower", "width": 8, "storeys": 2},
    "arms": {"bp": {"lr": 0.05}, "fa+mine": {"lr": 0.05}},
    "cost": {"cpu": 10000, "cuda": 10000, "mem_mb": 1500, "disk_mb": 1},
}
OTHER = STUDY | {
    "name": "other",
    "run": {"architecture": "mlp", "width": 8, "depth": 1},
    "arms": {"fa": {"lr": 0.05, "normalization": "plain", "update": "half"}},
}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def named(contributing: str) -> dict[str, set[str]]:
    """The files that each bullet of the section names."""
    section = contributing.split("## Changing it")[1].split("\n## ")[0]
    bullets = re.findall(r"^- \*\*(?:An? )(.+?)\*\*:(.*?)(?=^- |\n\n)", section, re.M | re.S)
    return {what: set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|yaml)|[\w/]+/)`", text)) for what, text in bullets}


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A project with one of each added, its tiny grid run."""
    folder = copy_project(tmp_path_factory.mktemp("changed"))
    before, files = snapshot(folder), named((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert set(files) == {
        "arm",
        "learning rule",
        "normalisation",
        "update",
        "architecture",
        "data set",
        "figure",
        "claim",
    }
    append(folder / "rankcollapse/library/rules.py", RULE)
    append(folder / "rankcollapse/library/norms.py", NORM)
    append(folder / "rankcollapse/library/updates.py", UPDATE)
    append(folder / "rankcollapse/library/models.py", ARCHITECTURE)
    append(folder / "rankcollapse/experiment/datasets.py", DATA)
    append(folder / "paper/claims.yaml", CLAIM)
    (folder / "rankcollapse/render/figures/losses.py").write_text(FIGURE, encoding="utf-8")
    replace(folder / "rankcollapse/experiment/config.py", '"resnet18"] = Field', '"resnet18", "tower"] = Field')
    replace(folder / "rankcollapse/experiment/config.py", '"frozen-bp"] = Field', '"frozen-bp", "mine"] = Field')
    replace(folder / "rankcollapse/experiment/config.py", '"whiten"] = Field', '"whiten", "plain"] = Field')
    replace(folder / "rankcollapse/experiment/config.py", '"sign"] = Field', '"sign", "half"] = Field')
    replace(folder / "rankcollapse/experiment/config.py", '"top_r", "full_rank"),', '"top_r", "full_rank", "half"),')
    knob = '    storeys: int = Field(1, ge=1, description="layers of the tower")\n    stem:'
    replace(folder / "rankcollapse/experiment/config.py", "    stem:", knob)
    replace(folder / "config.yaml", "  # The interventions on", ARM + "  # The interventions on")
    preset = yaml.safe_load((folder / "presets/demo.yaml").read_text(encoding="utf-8"))
    small = yaml.safe_load((folder / "tests/tiny.yaml").read_text(encoding="utf-8"))
    run = {**preset["run"], **small["run"], "validation_images": 40, "tuning_images": 0}
    preset = {**preset, "run": run, "studies": [STUDY, OTHER]}
    (folder / "presets/demo.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
    touched = {str(path) for path, content in snapshot(folder).items() if before.get(path) != content}
    allowed = set.union(*files.values())
    assert {p if p in allowed else f"{Path(p).parent}/" for p in touched} == allowed, "CONTRIBUTING names other files"
    result = snakemake(folder, "--cores", "2", "--configfile", "presets/demo.yaml")
    assert result.returncode == 0, result.stderr[-5000:]
    return folder


def test_the_new_arm_rule_architecture_and_data_set_are_trained_and_in_every_table(changed):
    runs = pd.read_csv(changed / "results/demo/tables/runs.csv")
    other = runs[runs["study"] == "other"]
    assert {(run.normalization, run.update) for run in other.itertuples()} == {("plain", "half")}
    mine = runs[runs["arm"] == "fa+mine"]
    assert set(mine["rule"]) == {"mine"}
    assert set(runs["dataset"]) == {"waves"}
    assert set(runs.loc[runs["study"] == "mine", "storeys"]) == {2}, "an architecture's knob is a column"
    assert set(runs["outcome"]) == {"finished"}
    accuracy = pd.read_csv(changed / "results/demo/summary/accuracy.csv")
    assert set(accuracy["arm"]) == {"bp", "fa", "fa+mine"}
    assert "| `storeys` | layers of the tower |" in (changed / "results/demo/README.md").read_text(encoding="utf-8")


def test_the_new_arm_and_data_set_are_in_the_figures_with_label_and_chance(changed):
    accuracy = (changed / "figures/demo/accuracy.svg").read_text(encoding="utf-8")
    assert "#123456" in accuracy
    assert "#123456" in (changed / "figures/demo/error_rank.svg").read_text(encoding="utf-8")
    for caption in (changed / "figures/demo").glob("*.txt"):
        assert "nan" not in caption.read_text(encoding="utf-8").split()
    assert "Waves" in (changed / "figures/demo/accuracy.txt").read_text(encoding="utf-8")


def test_the_new_figure_is_drawn_and_in_gallery_and_paper(changed):
    gallery = (changed / "figures/demo/README.md").read_text(encoding="utf-8")
    assert "18. Losses at the end" in gallery
    assert "Test losses at the end of 4 runs.\n" in gallery
    pages = PdfReader(changed / "paper/demo/replication.pdf").pages
    assert "Test losses at the end of 4 runs." in " ".join(" ".join(page.extract_text() for page in pages).split())


def test_the_new_claim_has_a_verdict(changed):
    claims = pd.read_csv(changed / "results/demo/summary/claims.csv").set_index("id")
    assert claims.loc["mine-below-bp", "n"] == 2
    assert claims.loc["mine-below-bp", "verdict"] in ("reproduced", "not reproduced", "inconclusive")
