# Every target sets up what it needs. With Pixi on PATH the commands run inside its environment,
# otherwise with any Python 3.11 or 3.12; `make PIXI=` leaves Pixi aside. Both use the same .venv.

SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin

PIXI ?= $(if $(PIXI_ENVIRONMENT_NAME),,$(shell command -v pixi))
PIXI_ENV ?= cpu
RUN = $(if $(PIXI),$(PIXI) run --locked -e $(PIXI_ENV))
PIXI_LOCK_TOOLS ?= ../shared/pixi

SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(if $(PIXI),python,$(shell for python in python3 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done))

# Evaluation clips and models beside the checkout, where a team keeps them. Optional.
SHARED_DATA ?= ../shared/data
override SHARED_DATA := $(shell cd "$(SHARED_DATA)" 2>/dev/null && pwd)
ifneq ($(SHARED_DATA),)
export SHARED_DATA
export POSE_MODEL_PATH := $(if $(POSE_MODEL_PATH),$(POSE_MODEL_PATH):)$(SHARED_DATA)/models
else
unexport SHARED_DATA
endif

PORT ?= 8001
VRAM_PORT ?= 8002
MODELS ?= --all
STREAMS ?= 4
FPS ?= 30
SECONDS ?= 20
OUT ?= docs/reports/streams.md
PYTEST_ARGS ?=
PYTEST = $(RUN) $(BIN)/python -m pytest -n 2 --cov --cov-fail-under=85
UPGRADE ?=
COMPILE = $(RUN) $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-build --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: ## Make or repair .venv from the locks; does nothing when it is right
	@if [ -z "$(PYTHON)" ]; then \
		echo "make install: Python 3.11 or 3.12 is needed; neither python3, python3.12 nor python3.11 is one." >&2; \
		exit 1; fi
	@$(RUN) $(PYTHON) scripts/bootstrap.py

.PHONY: fresh-install
fresh-install: ## Throw .venv away and install from nothing
	rm -rf .venv
	@$(MAKE) --no-print-directory install

.PHONY: demo
demo: install ## Analyse the sample clips and say what was found (downloads what it needs)
	$(RUN) $(BIN)/pose-analyzer demo

.PHONY: test
test: install ## Run all tests; fails under 85% coverage (PYTEST_ARGS="...")
	$(PYTEST) $(PYTEST_ARGS)

.PHONY: coverage
coverage: install ## Like test, and write htmlcov/index.html
	$(PYTEST) --cov-report=term --cov-report=html $(PYTEST_ARGS)

.PHONY: lint
lint: install ## Check style, types and the direction of imports
	$(RUN) $(BIN)/ruff check .
	$(RUN) $(BIN)/ruff format --check .
	$(RUN) $(BIN)/mypy
	$(RUN) $(BIN)/lint-imports

.PHONY: format
format: install ## Rewrite the code in the project's style
	$(RUN) $(BIN)/ruff check --fix .
	$(RUN) $(BIN)/ruff format .

.PHONY: pre-commit
pre-commit: install ## Run every pre-commit hook on all files
	$(RUN) $(BIN)/pre-commit run --all-files

.PHONY: run-pose
run-pose: install ## Start the pose service (PORT=8001)
	$(RUN) $(BIN)/python -m pose_analyzer.api.main --port $(PORT)

.PHONY: run-vram
run-vram: install ## Start the memory service (VRAM_PORT=8002)
	$(RUN) $(BIN)/python -m gpu_optimizer.api.main --port $(VRAM_PORT)

.PHONY: detect-gpu
detect-gpu: install ## Say cpu or cuda, and which machine this is (~/.ml_pipeline_gpu.json)
	@$(RUN) $(BIN)/python scripts/detect_gpu.py

.PHONY: gpu-profiler
gpu-profiler: install ## Predict what fits our machines (docs/reports/system_constraints.md)
	$(RUN) $(BIN)/python scripts/gpu_constraint_profiler.py

.PHONY: bench-streams
bench-streams: install ## Load the live service (STREAMS="1 4" FPS SECONDS FRAMES CLIP DETECTOR ENGINE OUT BENCH_ARGS)
	$(RUN) $(BIN)/python benchmarks/bench_streams.py --streams $(STREAMS) --fps $(FPS) \
		--seconds $(SECONDS) --report $(OUT) $(if $(FRAMES),--frames "$(FRAMES)") \
		$(if $(CLIP),--clip "$(CLIP)") $(if $(DETECTOR),--detector $(DETECTOR)) \
		$(if $(ENGINE),--engine $(ENGINE)) $(BENCH_ARGS)

.PHONY: eval-form
eval-form: install ## Judge recorded people left out of training (docs/reports/form_evaluation.md, EVAL_ARGS)
	$(RUN) $(BIN)/python benchmarks/form_evaluation.py $(if $(SHARED_DATA),--data "$(SHARED_DATA)") $(EVAL_ARGS)

.PHONY: eval-scores
eval-scores: install ## Score recorded people and labelled clips (docs/reports/form_scores.md)
	$(RUN) $(BIN)/python benchmarks/form_scores.py

.PHONY: eval-cues
eval-cues: install ## Count corrections of recorded people who do it right (docs/reports/form_cues.md)
	$(RUN) $(BIN)/python benchmarks/form_cues.py

.PHONY: pose-references
pose-references: install ## Make data/pose_references again from the recorded people
	$(RUN) $(BIN)/python scripts/make_pose_references.py

.PHONY: db-upgrade
db-upgrade: install ## Bring the tables up to date (DATABASE_URL, else the service's own database)
	$(RUN) $(BIN)/alembic upgrade head

.PHONY: download-models
download-models: install ## Fetch and check the pose models (MODELS="NAME ...", default all)
	$(RUN) $(BIN)/pose-analyzer models download $(MODELS)

.PHONY: lock
lock: install ## Pin every wheel again (UPGRADE=1 takes newer versions)
	$(COMPILE) --extra yolo --extra video --extra quantize --extra lightning --extra tracking --excludes config/locks/excludes.txt \
		projects/*/pyproject.toml config/locks/workspace.in -o config/locks/workspace.txt
	$(COMPILE) -c config/locks/workspace.txt --excludes config/locks/excludes.txt \
		projects/shared_utils/pyproject.toml projects/pose_analyzer/pyproject.toml \
		-o config/locks/mediapipe.txt
	$(COMPILE) -c config/locks/workspace.txt config/locks/uv.in -o config/locks/uv.txt
	@$(MAKE) --no-print-directory install

.PHONY: pixi-lock
pixi-lock: install ## Solve pixi.toml again, with pixi or the lock tools (PIXI_LOCK_TOOLS=DIR)
	@if [ -n "$(PIXI)" ]; then $(PIXI) lock; \
	elif [ -f "$(PIXI_LOCK_TOOLS)/makelock.py" ]; then \
		$(BIN)/python "$(PIXI_LOCK_TOOLS)/makelock.py" . \
		&& $(BIN)/python "$(PIXI_LOCK_TOOLS)/verify_lock.py" . && rm -f .pixi.lock.roundtrip; \
	else echo "make pixi-lock: put pixi on PATH (https://pixi.sh) and try again." >&2; exit 1; fi

.PHONY: clean
clean: ## Remove caches and reports, keep .venv, models and results
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage .coverage.*
	find . -path ./.venv -prune -o -path ./.pixi -prune -o -name __pycache__ -type d -exec rm -rf {} +
