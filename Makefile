# Two commands matter: `make demo` runs the main job, `make test` passes the tests.
# Each target sets up .venv with what it needs first. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench format clean

demo: $(VENV)/.ready
	$(BIN)/xenlive demo

# Tests beside each other, a process a processor; who is done takes over from the others. Single
# tests are for `python -m pytest FILE`. Many of them start interpreters: what these compile is kept.
JOBS ?= auto
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

# What needs no run of the whole: form, types, and the rules that the repository holds itself to.
check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/tidy

bench: $(VENV)/.ready
	$(BIN)/python bench/run.py

# Hostile input for everything that reads what others left (fuzz/README.md); MINUTES for all of it.
MINUTES ?= 10
.PHONY: fuzz
fuzz: $(VENV)/.ready
	$(BIN)/python fuzz/hunt.py --minutes $(MINUTES) --processes 2

# Chains of kernels over one kexec module (docs/simulator.md): every case, and SEEDS seeds.
SEEDS ?= 20000
.PHONY: campaign
campaign: $(VENV)/.ready
	$(BIN)/python -m xenlive.sim --chain --matrix
	$(BIN)/python -m xenlive.sim --chain --seeds $(SEEDS)

# Our Xenstore against Debian's daemons, the same sequences on each (docs/differences.md).
SEQUENCES ?= 2000
.PHONY: differential
differential: $(VENV)/.ready
	cd tests && ../$(BIN)/python -m differential --seeds $(SEQUENCES)

# The small C kernels of the tests, to boot by hand (docs/boot.md).
.PHONY: kernels
kernels: $(VENV)/.ready
	@PYTHONPATH=tests $(BIN)/python -m kernels build/kernels

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xenlive needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
