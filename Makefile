# Each target sets up .venv from the hash-pinned lock when it is missing or the lock is newer.
PYTHON ?= python3
BIN := .venv/bin
CORES ?= all
PRESET ?= quick
# Presets whose results the project commits share a report.
REPORT = paper/$(if $(filter quick full why paper,$(PRESET)),,$(PRESET)/)replication.pdf
SNAKEMAKE := $(BIN)/python -m snakemake --cores $(CORES)

.PHONY: setup demo quick full why paper render test test-gpu test-slurm test-conda test-faults verify lint format bench bench-gpu bench-scale readme schema lock envs archive

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
	@echo "Done: paper/demo/replication.pdf, results/demo/report.html, figures/demo/README.md, results/demo/README.md"

# With TUNED=results/quick/tuned.csv rates come from that table, and nothing is tuned.
quick: setup ## real CIFAR on two CPU cores
	$(SNAKEMAKE) --configfile presets/quick.yaml $(if $(TUNED),--config tuned=$(TUNED))
	$(SNAKEMAKE) --configfile presets/quick.yaml $(if $(TUNED),--config tuned=$(TUNED)) --report results/quick/report.html
	$(BIN)/python -m rankcollapse.render readme
	@echo "Done: paper/replication.pdf, results/quick/report.html, figures/quick/README.md, results/quick/README.md"

render: setup ## every figure, table, page and the PDF of a preset, PRESET=quick by default, from its committed tables; trains nothing
	$(SNAKEMAKE) render --forceall --configfile presets/$(PRESET).yaml
	@echo "Done: $(REPORT), figures/$(PRESET)/README.md, results/$(PRESET)/README.md"

# What stands in the committed tables counts as made: a grid of hours may be gathered over several sittings.
full why: setup ## the paper's network at full width; what carries the effect. Hours on two CPU cores each
	$(SNAKEMAKE) --configfile presets/$@.yaml --config keep=true
	@echo "Done: paper/replication.pdf, figures/$@/README.md, results/$@/README.md"

paper: setup ## the paper's grid, config.yaml: for GPUs
	$(SNAKEMAKE)

test: setup ## all tests, the workflow end to end among them, side by side on all cores
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

test-gpu: setup ## the tests that run on a GPU, and a report to send; an error where there is none
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no GPU here: torch sees no CUDA device, and nothing was tested")'
	$(BIN)/python -m pytest -m gpu

test-slurm: setup ## the workflow on a real SLURM of this machine's own, with faults; skipped where that cannot be installed
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

test-conda: setup ## the workflow in environments of a real conda that it builds; skipped where that cannot be had
	$(BIN)/python -m pytest -m conda tests/test_conda.py

test-faults: setup ## kills, damage, full disks: after each the same command again; about 20 minutes
	$(BIN)/python tests/faults.py

verify: setup ## check all that was made against its seals, byte by byte
	$(BIN)/python -m rankcollapse verify

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/python -m snakemake --lint
	$(BIN)/python -m rankcollapse schema --check
	$(BIN)/python -m rankcollapse.render readme --check
	$(BIN)/python envs/environments.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: setup build/biotorch ## what FA, Muon, probes and a job's start cost, beside the alternatives: CPU, minutes
	BIOTORCH=build/biotorch $(BIN)/python tests/bench.py

bench-gpu: setup build/biotorch ## the same on a GPU; an error where there is none
	BIOTORCH=build/biotorch $(BIN)/python tests/bench.py --device cuda

# Another implementation of FA, to compare with: beside our environment, never in it. Without it its row says so.
build/biotorch: | setup
	-$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $@ biotorch==0.0.16

bench-scale: setup ## cost of the workflow itself for 100, 1,000 and 10,000 runs
	$(BIN)/python tests/scale.py

readme: setup ## write the generated tables into README.md and docs/
	$(BIN)/python -m rankcollapse.render readme

schema: setup ## write config.schema.json, by which editors check and complete the configs
	$(BIN)/python -m rankcollapse schema

lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --extra workflow --extra dev pyproject.toml --output-file requirements.lock
	$(MAKE) envs

envs: setup ## write the conda environments, from pyproject.toml and the lock
	$(BIN)/python envs/environments.py

# Of the last commit, not of the working tree: the same commit gives the same bytes.
VERSION := $(shell sed -n 's/^version: //p' CITATION.cff)
archive: ## the paper, its figures and tables in one file, for Zenodo or a preprint server
	mkdir -p build
	git -c tar.umask=0022 -c tar.tar.gz.command='gzip -n' archive --prefix=rankcollapse-$(VERSION)/ \
	  --output build/rankcollapse-$(VERSION).tar.gz HEAD \
	  paper figures results docs config.yaml presets README.md CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff
	@echo "Done: build/rankcollapse-$(VERSION).tar.gz, of commit $$(git rev-parse --short HEAD)"
