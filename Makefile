# Each target does its own set-up in .venv; a repeated call finds it done.
# TORCH names the torch to install first: for a CPU or another CUDA version, `make TORCH=... test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test slow lint pyright peers faults ranks matrix examples docs clean

train: $(VENV)/.installed
	$(BIN)/fewshot-blo train --run runs/glyphs

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

# The tests that `make test` leaves out.
slow: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/document_blocks.py build/documents
	$(BIN)/mypy build/documents

# Runs docs/examples/*.py and writes their notebooks; `make examples ARGUMENTS=--check` writes none.
examples: $(VENV)/.docs
	$(BIN)/python scripts/examples.py $(ARGUMENTS)

# Both packages and the documents' examples as editors see them. Not in lint: it runs on Node.js.
pyright: $(VENV)/.pyright
	$(BIN)/python scripts/document_blocks.py build/documents
	$(BIN)/pyright --pythonpath $(BIN)/python fewshot_blo tasks build/documents

# Kills, full disks, damage, malicious files, nonsense: about an hour and a half. The table is docs/results/faults.md.
faults: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m faults --output docs/results/faults.md

# Two and four processes against one: every strategy, problem and norm mode.
ranks: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -m ranks

# The lowest and the newest declared versions, each in a fresh environment: gigabytes, and a run of the
# tests for each. The table is docs/results/versions.md.
matrix:
	$(PYTHON) scripts/matrix.py

# The site, build/site/index.html. A warning, as of a dead link, is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -n docs build/site

# higher, learn2learn, TorchOpt and easyfsl, which tests and benchmarks compare with.
peers: $(VENV)/.peers

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or later is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "python3 has no venv module: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install "$(TORCH)" torchvision  # Together, or the latter brings a newer torch.
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.cfg pyproject.toml
	$(BIN)/python -m pip install --editable ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --editable ".[docs,sklearn]" || \
		{ echo "The site and the examples need the extras docs and sklearn: see pip's message above" >&2; exit 1; }
	touch $@

$(VENV)/.pyright: $(VENV)/.installed
	$(BIN)/python -m pip install --editable ".[pyright]"
	touch $@

$(VENV)/.peers: $(VENV)/.installed scripts/install_peers.py
	$(BIN)/python scripts/install_peers.py
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
