# Every target first installs what it needs into .venv. Requirements: Python 3.11+, make and a network.
PYTHON ?= python3
VENV   := .venv
# Dependency group of pyproject.toml; `unit` is enough for `make quick`.
GROUP  := dev
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The embedded Redis of `make run` keeps its data here.
export OSSA_REGISTRY_DATA_DIR ?= .data
PROTOS := $(wildcard protos/ossa/registry/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help setup constraints run quick test interop fuzz faults check lint format type proto proto-check docs build bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the project (editable) and the tools
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ossa-registry needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . --group $(GROUP)
	@touch $@

FRESH := build/constraints
constraints: ## Resolve the newest dependencies that pyproject.toml allows and write constraints.txt
	@rm -rf $(FRESH) && $(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(FRESH)/bin/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@{ head -n 1 constraints.txt && $(FRESH)/bin/python -m pip freeze --exclude-editable; } > $(FRESH)/constraints.txt
	@mv $(FRESH)/constraints.txt constraints.txt && rm -rf $(FRESH)

run: $(STAMP) ## Serve gRPC on :50051 and HTTP on :3002 with an embedded Redis
	@exec $(BIN)/ossa-registry serve

# Each process collects all tests, which takes seconds: more than two would not be faster.
quick: $(STAMP) ## Run the unit tests that need no real time; under 30 seconds
	$(BIN)/python -m pytest --numprocesses=2 --quiet --hypothesis-profile=quick \
	  -m "not slow and not faults and not own_redis" tests/unit $(ARGS)

test: $(STAMP) ## Run all tests except interop; about 8 minutes on 2 cores
	$(BIN)/python -m pytest -m "not interop" $(ARGS)

interop: $(STAMP) ## Build and run what other languages, wheels, the image and the previous version need; 2 to 5 minutes
	$(BIN)/python -m pytest --numprocesses=3 -m interop $(ARGS)

fuzz: $(STAMP) ## Send 50,000 malformed and 50,000 generated requests, and a flood of every field; takes some minutes
	OSSA_FUZZ=50000 $(BIN)/python -m pytest --numprocesses=0 -s tests/fuzz $(ARGS)

faults: $(STAMP) ## Run the fault suite: each fault twice, under load, then hostile callers; takes several minutes
	$(BIN)/python -m tests.faults.suite $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.faults.hostile)

check: lint type proto-check test interop ## Run everything that CI runs: lint, type, proto-check, test and interop

lint: $(STAMP) ## Lint and check the format of Python and protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code --path protos/ossa

format: $(STAMP) ## Format Python and protos, apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write --path protos/ossa

type: $(STAMP) ## Check types
	$(BIN)/mypy

define protoc
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos \
	  --python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos \
	  --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) protos/ossa/registry/v1/registry_service.proto
endef

proto: $(STAMP) ## Generate generated/ from protos/
	$(call protoc,generated)

proto-check: $(STAMP) ## Fail if generated/ does not match protos/
	@rm -rf build/proto && mkdir -p build/proto
	$(call protoc,build/proto)
	diff --recursive --exclude=__init__.py --exclude=py.typed --exclude=__pycache__ build/proto generated

docs: $(STAMP) ## Write the generated tables in docs/ and record the output of the commands in docs/cli.md
	$(BIN)/python -m docs.tables
	$(BIN)/python -m docs.record

build: $(STAMP) ## Build both distributions into dist/: ossa-registry and ossa-registry-client
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist --wheel packaging/client

bench: $(STAMP) ## Run the benchmarks and write docs/benchmarks.md
	$(BIN)/python -m benchmarks --page docs/benchmarks.md $(ARGS)

clean: ## Remove build output and .venv, but not .data
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
