# `make demo` and `make test` set up all they need in .venv first: Python 3.11 or newer with its
# venv module, and make, are enough. Set-up runs once, and again when the dependencies change.
#
#   make demo PYTHON=/path/to/python3.12   choose the Python that .venv is made of
#   make demo TORCH_INDEX=URL              an index to look for torch on, beside your usual one:
#                                          a machine without NVIDIA GPU wants PyTorch's CPU wheels
#   make demo ARGS="..."                   further arguments of the command

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.linewatch-installed
PYTHON ?=
TORCH_INDEX ?=
# Of the torch in configs/constraints.txt. It is read, and not installed: it needs a GPU.
TORCH_TENSORRT := 2.13.0
ARGS ?=
# Files of tests that run at once; a thread each for what they compute.
WORKERS ?= 2

.PHONY: help setup demo test test-cameras conformance deeppcb magnetic clean

help:
	@echo "make demo      set up, then train, calibrate and run a rendered line; figures in demo-out/"
	@echo "make test      set up, then ruff, mypy --strict and all tests"
	@echo "make test-cameras  set up, then install cameras' software with apt (Debian, Ubuntu) and run"
	@echo "               tests/cameras: Aravis and RTSP against a fake camera and a real server"
	@echo "make conformance  set up, then torch-tensorrt's own lowering and partitioner over our graphs:"
	@echo "               would each become one TensorRT engine? No GPU needed; about a minute"
	@echo "make deeppcb   set up, then train, calibrate, replay and report on boards of LINEWATCH_DATA"
	@echo "make magnetic  set up, then train, calibrate and report on tiles of LINEWATCH_DATA"
	@echo "make setup     set up only: .venv with linewatch and its pinned dependencies"
	@echo "make clean     remove .venv, caches and what demo, deeppcb and magnetic wrote"
	@echo
	@echo "Choices: PYTHON=..., TORCH_INDEX=..., ARGS=...; the top of the Makefile explains them."

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/linewatch demo $(ARGS)

# All four run, whatever the first ones say; the last line names those that failed.
test: $(STAMP)
	@failed=""; export OMP_NUM_THREADS=1; \
	for check in "ruff check ." "ruff format --check ." "mypy" "pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0 $(ARGS)"; do \
		echo "== $$check"; \
		$(BIN)/$$check || failed="$$failed [$$check]"; \
	done; \
	if [ -n "$$failed" ]; then echo "make test: failed:$$failed"; exit 1; fi; \
	echo "make test: all checks passed"

# No part of `make test`: it installs packages of the system's.
test-cameras: $(STAMP)
	tools/camera_packages.sh
	LINEWATCH_NEEDS_CAMERAS=1 $(BIN)/pytest tests/cameras $(ARGS)

# No part of `make test`: it runs torch-tensorrt's code with a stand-in for TensorRT's libraries.
conformance: $(STAMP)
	$(BIN)/python tests/conformance/lowering.py

deeppcb: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/deeppcb_line.sh $(ARGS)

magnetic: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/magnetic_tile.sh $(ARGS)

$(STAMP): pyproject.toml configs/constraints.txt
	@set -e; \
	usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$usable" 2>/dev/null; then \
		for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
			if "$$candidate" -c "$$usable" 2>/dev/null; then python="$$candidate"; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "make: found no Python 3.11 or newer with its venv module among:" \
				"$(or $(PYTHON),python3 python3.13 python3.12 python3.11)"; \
			echo "Install one (on Debian or Ubuntu: apt install python3 python3-venv)," \
				"or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
			exit 1; \
		fi; \
		echo "== $(VENV) of $$("$$python" -V)"; \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	echo "== installing into $(VENV); the first time this takes minutes"; \
	$(BIN)/python -m pip install --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c configs/constraints.txt -e '.[station,basler,plc,test]'; \
	echo "== fetching torch-tensorrt's source, which tests read"; \
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--only-binary=:all: --target $(VENV)/conformance torch-tensorrt==$(TORCH_TENSORRT) || \
		echo "note: no torch-tensorrt for this machine; only tests need it, and say so"
	@if ! command -v nvidia-smi >/dev/null && ! $(BIN)/python -c \
		"import importlib.metadata as m, sys; sys.exit('+cpu' not in m.version('torch'))"; then \
		echo "note: no NVIDIA GPU here, and your package index gave torch's CUDA build. It works;"; \
		echo "      the CPU build is smaller: make clean setup TORCH_INDEX=<PyTorch's CPU wheel index>"; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out deeppcb-out magnetic-out
