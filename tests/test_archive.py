"""What goes out with the repository: the archive to deposit, and the links between its pages."""

import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
HELD = """README.md LICENSE CITATION.cff docs/running.md paper/paper.typ paper/references.bib paper/claims.yaml
paper/published.yaml paper/replication.pdf figures/quick/README.md figures/quick/accuracy.svg
results/quick/tables/runs.csv results/quick/tables/ranks.csv.gz results/quick/summary/claims.csv results/quick/tuned.csv
results/quick/provenance.json results/quick/manifest.json""".split()  # noqa: SIM905


def archive(clone: Path, **env: str) -> bytes:
    made = ["make", "-C", str(clone), "-f", str(ROOT / "Makefile"), "archive"]
    subprocess.run(made, check=True, capture_output=True, env={**os.environ, **env})
    return (clone / f"build/rankcollapse-{VERSION}.tar.gz").read_bytes()


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git repository")
def test_the_archive_is_of_the_last_commit_to_the_byte_wherever_it_is_made(tmp_path):
    packed = []
    for name, env in {"here": {"TZ": "UTC", "USER": "a"}, "a b/there": {"TZ": "Asia/Tokyo", "USER": "b"}}.items():
        clone = tmp_path / name
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        if packed:  # another umask, and a working tree that is not the commit
            subprocess.run(["git", "-C", str(clone), "config", "tar.umask", "0077"], check=True)
            (clone / "LICENSE").write_text("changed", encoding="utf-8")
            (clone / "paper/new.typ").write_text("new", encoding="utf-8")
        packed.append(archive(clone, **env))
    assert packed[0] == packed[1]
    assert packed[0][4:8] == bytes(4), "gzip's own time"
    git = ["git", "-C", str(ROOT), "show", "-s", "--format=%ct", "HEAD"]
    committed = int(subprocess.run(git, check=True, capture_output=True).stdout)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed[0]))) as tar:
        members = tar.getmembers()
        assert {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, committed)}
        top = f"rankcollapse-{VERSION}"
        names = [one.name.removeprefix(f"{top}/") for one in members]
        assert set(HELD) - set(names) == set()
        assert not any(name.startswith(("tests", "rankcollapse", ".")) for name in names if name != top)
        assert tar.extractfile(f"{top}/LICENSE").read() == (tmp_path / "here" / "LICENSE").read_bytes()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    text = re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


def test_the_workflow_catalog_finds_what_it_looks_for():
    """A Snakefile in the folder `workflow`, modules in .smk, two words in the README, and a mapping with known keys."""
    assert (ROOT / "workflow/Snakefile").samefile(ROOT / "Snakefile")
    assert [path.suffix for path in (ROOT / "workflow/rules").iterdir() if path.is_file()].count(".smk") >= 1
    words = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert {word for word in ("snakemake", "workflow") if word not in words} == set()
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert {*usage} == {"mandatory-flags", "software-stack-deployment", "report"}
    assert {*usage["mandatory-flags"]} == {"desc", "flags"}
    assert all(isinstance(says, bool) for says in (usage["report"], *usage["software-stack-deployment"].values()))
