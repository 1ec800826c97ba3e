# The one place that says how to build, try and check this. `make help` lists it.
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOS := embedkeep/v1/cache.proto embedkeep/v1/embedder.proto

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: proto
proto: $(VENV)/dev  ## Generate the wire's Python from its .proto files
	$(BIN)/python -m grpc_tools.protoc -I cache_node \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=cache_node --grpc_python_out=cache_node \
	  --mypy_out=quiet:cache_node --mypy_grpc_out=quiet:cache_node $(PROTOS)
