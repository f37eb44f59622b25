# Everything runs from a bare Python 3.11 and make; the environment is in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A third of the modules is ever imported: those are compiled by their first import, once.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes
export LIFECYCLE_HOME ?= $(CURDIR)/.lifecycle
export DAGSTER_HOME ?= $(LIFECYCLE_HOME)/dagster
PATH := $(CURDIR)/$(BIN):$(PATH)
export PATH
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.PHONY: demo test ui databricks lint format typecheck defs bench pictures reference pins clean

demo: $(VENV)/.run ## The whole life of docs_agent; FRESH=1 starts over
	@$(BIN)/python -m lifecycle_assets.demo.main $(if $(FRESH),--fresh)

test: $(VENV)/.dev ## Every test
	@sh tests/ui/chromium.sh
	@sh tests/postgres.sh
	@scratch=$$(sh tests/scratch.sh) && trap 'rm -rf "$$scratch"' EXIT && OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q -n 5 --dist loadfile --no-loadscope-reorder --basetemp "$$scratch/tests"

ui: $(VENV)/.run ## The Dagster UI on the same state
	@$(BIN)/python -m lifecycle_assets.home
	$(BIN)/dagster dev -w workspace.yaml -h 127.0.0.1 -p $(or $(PORT),3000)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.dev
	$(BIN)/ty check

defs: $(VENV)/.dev
	@$(BIN)/python -m lifecycle_assets.home
	$(BIN)/dg check defs

bench: $(VENV)/.dev ## Side-by-side ratios
	$(BIN)/python -m benchmarks.run

# pip works on one core: the first and the second half of the pins are installed at once. They are sorted, and those
# that share files (MLflow's three) stand together.
define install
	@echo "Installing pinned dependencies into $(VENV) (about a minute, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@sed '/^p/,$$d' $< >$(VENV)/first.txt && sed -n '/^p/,$$p' $< >$(VENV)/second.txt
	@$(PIP) -r $(VENV)/first.txt & first=$$!; $(PIP) -r $(VENV)/second.txt; second=$$?; wait $$first && exit $$second
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef

$(VENV)/.run: requirements.txt
	$(install)

# All that a run needs is in it too.
$(VENV)/.dev: requirements-dev.txt
	$(install)
	@touch $(VENV)/.run

databricks: $(VENV)/.run ## What LIFECYCLE_PLATFORM=databricks needs besides (500 MB: PySpark comes with it)
	@$(PIP) -r requirements-databricks.txt

pictures: $(VENV)/.dev ## Take the pictures of the documentation from the running UI
	@sh tests/ui/chromium.sh
	$(BIN)/python -m docs.make_pictures

reference: $(VENV)/.dev ## Write docs/reference.md from the code
	$(BIN)/python -m docs.make_reference

pins: ## Resolve the pins again; no index is named in them
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-annotate --no-header pyproject.toml --extra build -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-annotate --no-header pyproject.toml --extra build --extra databricks -c requirements.txt -o requirements-databricks.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-annotate --no-header pyproject.toml --extra build --extra databricks --extra dev -c requirements-databricks.txt -o requirements-dev.txt

clean:
	rm -rf $(VENV) .lifecycle
