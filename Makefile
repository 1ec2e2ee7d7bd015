# Each target sets up .venv from the hash-pinned lock when it is missing or the lock is newer.
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)

.PHONY: setup demo quick paper test lint format bench readme lock

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"Python {v[0]}.{v[1]} found; 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -c 'import ensurepip' || { echo "python3 has no venv module: apt-get install python3-venv, or make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## digits, all arms, 2 seeds: minutes, no download
	$(SNAKEMAKE) --configfile presets/demo.yaml
	$(SNAKEMAKE) --configfile presets/demo.yaml --report results/demo/report.html
	@echo "Done: paper/demo/replication.pdf, results/demo/report.html, figures/demo/, results/demo/summary/"

quick: setup ## real CIFAR on two CPU cores, 3 seeds
	$(SNAKEMAKE) --configfile presets/quick.yaml
	$(SNAKEMAKE) --configfile presets/quick.yaml --report results/quick/report.html
	$(BIN)/python workflow/scripts/readme.py
	@echo "Done: paper/quick/replication.pdf, results/quick/report.html, figures/quick/, results/quick/summary/"

paper: setup ## the paper's grid, config.yaml: for GPUs
	$(SNAKEMAKE)

test: setup ## all tests, the workflow end to end among them
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/python workflow/scripts/readme.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: setup ## cost of feedback alignment against backpropagation, and of the probes
	$(BIN)/python -m rankcollapse bench config.yaml presets/quick.yaml

readme: setup ## write the claims table into README.md
	$(BIN)/python workflow/scripts/readme.py

lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --extra workflow --extra dev pyproject.toml --output-file requirements.lock
