# Every target makes .venv if it is missing, installs what it needs there, and runs. VENV=/elsewhere puts it elsewhere.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: bench demo docs gpu lint sanitize test test-slow

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/finetune_peptides.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m slow

# The fuzzer of what may happen between forward and backward, under the sanitizers of GCC (Linux).
sanitize: $(VENV)/.installed-dev
	$(BIN)/python tests/_sanitized.py --cases $(or $(CASES),300) --seed $(or $(SEED),0)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# On a machine with a CUDA GPU and a torch that drives it.
gpu: $(VENV)/.installed-dev
	LSTM_FREEZE_DEVICE=cuda $(BIN)/python -m pytest tests/on_device tests/test_cuda.py
	$(BIN)/python benchmarks/speed.py --device cuda
	$(BIN)/python benchmarks/readme_tables.py

bench: $(VENV)/.installed-demo
	$(BIN)/python benchmarks/speed.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; '$(PYTHON)' is not. Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once; a few minutes, most of it PyTorch)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[examples]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once; a few minutes, most of it PyTorch)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed-demo
