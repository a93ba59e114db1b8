# carbon_points: `make` lists what there is. It needs git, make and python3 with pip or venv; whatever else it
# needs it puts into .uv and .venv here. Arguments go through ARGS: make demo ARGS="--json"

PYTHON ?= python3
UV_RELEASE := uv>=0.13.9,<0.14
UV := .uv/bin/uv
# The interpreter of .venv: PYTHON where it is told; else the system's, since distributions build theirs for speed.
INTERPRETER = $(shell for python in $(if $(filter file,$(origin PYTHON)),/usr/bin/python3) $(PYTHON); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
READY := .venv/.ready

# uv.lock names every file by address and hash, so the caller's own indexes and environments play no part.
export UV_PROJECT_ENVIRONMENT := .venv
export UV_NO_CONFIG := 1
unexport VIRTUAL_ENV UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_FROZEN
# The certificates that the system trusts, as git uses them; UV_SYSTEM_CERTS=0 for uv's own.
UV_SYSTEM_CERTS ?= 1
export UV_SYSTEM_CERTS

SIDE_BY_SIDE := -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-long test-terminals check format bench clean

help:
	@sed -n 's/^\([a-z-]*\):.*## */\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: $(READY) ## the environment in .venv, from uv.lock

demo: $(READY) ## the closed loop on a fresh data folder, over HTTP (--json, --stay, --actions FILE)
	@$(BIN)/carbon-points demo $(ARGS)

serve: $(READY) ## an empty server
	@$(BIN)/carbon-points serve $(ARGS)

# Two workers share the tests, each with databases of its own; ARGS="-n 0" for one process (-s, --pdb).
test: check ## check, then every quick test
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

test-long: check ## check, then every test, also those of minutes, with more examples
	HYPOTHESIS_PROFILE=long $(BIN)/pytest -m "long or not long" $(ARGS)

test-terminals: $(READY) ## simulated tills on a network that fails: SEEDS=10000 for more, SEED=n shows one
	@echo "$(if $(SEED),seed $(SEED),seeds 0 to $$(($${SEEDS:-1000} - 1)))"
	$(BIN)/pytest tests/simulation $(if $(SEED),-s,$(SIDE_BY_SIDE)) $(ARGS)

check: $(READY) ## lint, format and types; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

format: $(READY) ## write what can be put right without a thought
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(READY) ## what is measured, against what: bench/
	$(BIN)/python bench/run.py $(ARGS)
	$(BIN)/python bench/terminals.py

clean: ## take away what setup and test made; data folders stay
	rm -rf .venv .uv .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(UV) pyproject.toml uv.lock
	@test -n "$(INTERPRETER)" || \
		echo "$(PYTHON) is older than 3.11: uv takes a newer one from PATH, or downloads one for this project." >&2
	$(UV) sync --locked --quiet $(addprefix --python ,$(INTERPRETER))
	@touch $@

# A virtual environment where python3 can make one; where it cannot (Debian without python3-venv), the system's pip.
$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer." >&2; exit 1; }
	@rm -rf .uv
	@if $(PYTHON) -m venv .uv >/dev/null 2>&1; then pip=".uv/bin/python -m pip install"; \
	elif rm -rf .uv; $(PYTHON) -m pip --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip install --target .uv"; \
	else echo "$(PYTHON) has neither venv nor pip. Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	echo "installing uv into .uv" >&2; \
	$$pip --quiet --disable-pip-version-check "$(UV_RELEASE)"
