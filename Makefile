# make bench   regenerate the default leaderboard
# make real    the board of a pretrained model (SmolLM2-135M); OPTIONS="--streams 2" for fewer streams
# make test    the tests; make lint: style and types; make perf: throughput against bare loops; make attack: malformed input
#                (OPTIONS="--tries 20": so many of each kind)
# Each sets up what it needs in .venv first, from requirements.lock. PYTHON=... chooses another interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DELETE_ON_ERROR:
.PHONY: bench real test lint perf attack lock clean

bench: $(READY)
	@$(BIN)/python run_bench.py

real: $(READY)
	@$(BIN)/python run_bench.py model get smollm2
	@$(BIN)/python run_bench.py run real-newsworld $(OPTIONS)
	@echo "Other texts, where FOLDER has a file for each split (test.json or test.jsonl, and so on):"
	@echo "  SQuAD, articles of the validation split of rajpurkar/squad that reports/results/README.md names:"
	@echo "    $(BIN)/python run_bench.py run real-squad --data-files FOLDER"
	@echo "  RealTimeQA (datasets/realtimeqa):"
	@echo "    $(BIN)/python run_bench.py run real-news --data-files FOLDER"

test: $(READY)
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

perf: $(READY)
	@$(BIN)/python -m tests.perf $(BASE)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or later, or say where it is: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but 3.11 or later is needed: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. Install its venv module (python3-venv on Debian and Ubuntu)." >&2; exit 1; }
	@echo "Setting up .venv (once; some minutes) ..."
	@rm -f $@
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

attack: $(READY)
	@$(BIN)/python -m tests.attack $(OPTIONS)

lock:
	@rm -rf .venv-lock
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check --upgrade hatchling torch==2.13.0 ".[test]"
	@{ echo "# Everything needed to run and test, exactly. Made by: make lock"; .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude online-adaptation-bench | sed 's/+[a-z0-9.]*$$//' | grep -v '^nvidia-\|^triton'; } > requirements.lock
	@rm -rf .venv-lock

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find bench methods reports tests -name __pycache__ -type d -prune -exec rm -rf {} +
