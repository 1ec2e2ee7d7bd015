"""Write the conda environments of envs/, in the versions of requirements.lock. --check only compares.

What each holds is in pyproject.toml: `train` has the library's dependencies, `render` those of the extra of that name.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT, LOCK, FOLDER = Path("pyproject.toml"), Path("requirements.lock"), Path("envs")
FOR = {"train": "converting data sets, and training", "render": "tables, figures and the paper; no torch"}
# By pip, from the wheels of the lock: conda-forge builds others, in other versions.
TEXT = """\
# Written by `make envs` from pyproject.toml and requirements.lock: {what}.
channels:
  - conda-forge
dependencies:
  - python={python}
  - pip
  - pip:
{pins}
"""


def environments() -> dict[Path, str]:
    """The text of each file."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    python = re.search(r">=(\d+\.\d+)", project["requires-python"])[1]
    locked = versions(python)
    listed = {"train": project["dependencies"], "render": project["optional-dependencies"]["render"]}
    found = {}
    for name, requirements in listed.items():
        packages = [canonicalize_name(Requirement(text).name) for text in requirements]
        if missing := [package for package in packages if package not in locked]:
            sys.exit(f"{LOCK} lacks {', '.join(missing)}, which {PROJECT} asks for: run `make lock`")
        pins = "\n".join(f"      - {package}=={locked[package]}" for package in packages)
        found[FOLDER / f"{name}.yaml"] = TEXT.format(what=FOR[name], python=python, pins=pins)
    return found


def versions(python: str) -> dict[str, str]:
    """By package, what the lock has for this version of Python."""
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    found = {}
    for line in re.findall(r"^([^\s#-][^\\\n]*)", LOCK.read_text(encoding="utf-8"), re.M):
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate(target):
            (pin,) = requirement.specifier
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if a file is not what would be written")
    only_check = parser.parse_args().check
    for path, text in environments().items():
        if not only_check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is not what {PROJECT} and {LOCK} say: run `make envs`")


if __name__ == "__main__":
    main()
