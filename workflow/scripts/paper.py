"""Compile the paper with typst, offline, with the fonts that come with the package."""

import argparse
import json
from pathlib import Path

import typst

from rankcollapse import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the typst source")
    parser.add_argument("--inputs", type=json.loads, required=True, help="JSON: what the head of the text reads")
    parser.add_argument("--out", type=Path, required=True, help="PDF to write")
    args = parser.parse_args()
    inputs = {key: value if isinstance(value, str) else json.dumps(value) for key, value in args.inputs.items()}
    # The root is the repository: the text reads results/<preset>/summary and figures/<preset>.
    pdf = typst.compile(str(args.text), root=".", sys_inputs=inputs, ignore_system_fonts=True)
    files.write(args.out, lambda path: path.write_bytes(pdf))


if __name__ == "__main__":
    main()
