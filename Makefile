# `make demo` and `make test` set everything up by themselves; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell nproc 2>/dev/null || echo 2)
NATIVE := $(shell find csrc -type f) setup.py
CPP := $(shell git ls-files '*.cpp' '*.h' '*.inc' '*.cu' '*.cuh')
# A plain path entry: with setuptools' finder, a script beside the clone would import the clone's folder instead.
# (setuptools warns of that mode at length.)
INSTALL := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-compile --no-build-isolation --config-settings editable_mode=compat

.PHONY: demo test cuda-test nvcc wheel wheel-test lint format build clean
.DELETE_ON_ERROR:

demo: .venv/built
	$(BIN)/zcpipe run --space nasbench201 --sample 64 --batch-size 16 --workers $(CORES) --out runs/demo
	$(BIN)/zcpipe rank runs/demo --top 10

# Tests start hundreds of processes: none compiles the modules that another has, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE =
# Two workers more than cores: that which tests clusters, one at a time, mostly waits, and others wait now and then.
test: .venv/built
	$(BIN)/python -m pytest -n $$(($(CORES) + 2)) --dist loadgroup

# The proof of the CUDA kernels on a machine without a GPU (docs/cuda.md).
cuda-test: nvcc
	$(BIN)/python -m pytest -n $(CORES) tests/cuda tests/gpu

# A CUDA compiler for machines that have none: 100 MB from PyPI, no GPU and no driver needed.
nvcc: .venv/built
	command -v nvcc || test -x "$$CUDA_HOME/bin/nvcc" || \
	$(BIN)/pip install --quiet --constraint constraints.txt nvidia-cuda-nvcc nvidia-cuda-cccl

# Made from the source distribution, so that nothing of this folder gets in that it does not name.
wheel: .venv/built
	rm -rf dist
	$(BIN)/python setup.py --quiet sdist
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist dist/zcpipe-*.tar.gz

# The proof of the wheel: what is in it, and that it scores in an environment without a compiler and without this folder.
wheel-test: wheel
	$(BIN)/python .ci/wheel.py

lint: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: .venv/built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

build: .venv/installed
	$(INSTALL) --no-deps --editable .
	touch .venv/built

# Setting up builds too: nothing is built again unless something is newer than that.
.venv/built: .venv/installed $(NATIVE)
	@test -e $@ && test -z "$$(find $^ -newer $@)" || $(INSTALL) --no-deps --editable .
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("zcpipe needs Python 3.11 or newer; make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --upgrade --constraint constraints.txt pip setuptools wheel ninja numpy pybind11 torch
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@# Compiled by all cores, where pip takes one. Some packages have files that are not Python of this version.
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@ .venv/built

clean:
	rm -rf .venv build dist zcpipe.egg-info zcpipe/_C*.so zcpipe/_graph*.so
