"""Compile the paper with typst, offline, with the fonts that come with the package: python paper.py TEXT NAMES PDF"""

import json
import sys

import typst

from rankcollapse.experiment import files

if __name__ == "__main__":
    text, names, pdf = sys.argv[1:]
    inputs = {key: value if isinstance(value, str) else json.dumps(value) for key, value in json.loads(names).items()}
    # The root is the repository: the text reads results/<preset>/summary and figures/<preset>.
    made = typst.compile(text, root=".", sys_inputs=inputs, ignore_system_fonts=True)
    files.write(pdf, lambda path: path.write_bytes(made))
