# make demo   set up .venv, train the demonstration: runs/demo/
# make test   set up .venv, run every check that must pass
# make test-all   the same with every case, which takes longer
# make test-keras-versions  set up .venv, test the library on other versions of Keras
# make docs   set up .venv, build the documentation: build/site/index.html
# make bench  set up .venv, run the benchmarks: adds to runs/bench.jsonl
# make notebooks  set up .venv, run the notebooks, which keep their outputs
# make clean  remove .venv and all built files

PYTHON ?= python3
BIN := .venv/bin
BACKENDS := jax tensorflow torch
BENCHMARKS := training_step plain_pytorch growth peak_memory image_data_format \
	maxout locally_connected2d export_latency beta_monitor
export KERAS_BACKEND ?= jax
export TF_CPP_MIN_LOG_LEVEL ?= 3
# The theme's note about its successor is not a warning of the build.
export NO_MKDOCS_2_WARNING ?= 1

install = $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-all test-keras-versions check docs bench notebooks clean

demo: .venv/$(KERAS_BACKEND)
	$(BIN)/keras-invdrop demo

# The type checker, which uses one core, runs beside the first tests.
test: .venv/dev
	$(MAKE) --jobs=2 check test-jax
	$(MAKE) --jobs=1 test-tensorflow test-torch

# Adds the cases marked `thorough`, and uses the default settings of XLA.
test-all: .venv/dev
	$(MAKE) test TESTS=--thorough XLA_FLAGS=

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/mkdocs build --strict

# The tests on one backend: make test-jax. PyTorch also runs the tests that do not
# depend on the backend. Some of these wait for other processes or for the clock, so that
# a third worker finds time on two cores.
test-torch: WORKERS := 3
# The first two flags halve the compile time of programs that run only a few times.
# The third keeps each worker to one thread, as the workers use all cores.
test-jax: export XLA_FLAGS := --xla_cpu_use_fusion_emitters=false \
	--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false
test-%: WORKERS ?= 2
test-%: .venv/dev
	KERAS_BACKEND=$* $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

# The oldest supported Keras, one between and the newest release.
test-keras-versions: test-keras-3.10.0 test-keras-3.13.2 test-keras-newest

# The library on one version of Keras: all its tests on JAX, the layers' tests on the
# other backends, and on PyTorch those that do not depend on the backend. Only Keras
# differs from .venv.
test-keras-%: .venv/dev
	rm -rf build/keras-$*
	$(BIN)/pip install --quiet --no-deps --target build/keras-$* keras$(if $(filter newest,$*),,==$*)
	PYTHONPATH=$(CURDIR)/build/keras-$* KERAS_BACKEND=jax $(BIN)/pytest --numprocesses 2 tests/keras_invdrop
	for backend in tensorflow torch; do \
		PYTHONPATH=$(CURDIR)/build/keras-$* KERAS_BACKEND=$$backend $(BIN)/pytest --numprocesses 2 \
			tests/keras_invdrop/layers tests/keras_invdrop/test_keras.py tests/keras_invdrop/test_golden.py || exit; \
	done
	PYTHONPATH=$(CURDIR)/build/keras-$* KERAS_BACKEND=torch $(BIN)/pytest --numprocesses 2 -m one_backend tests/keras_invdrop

bench: $(BACKENDS:%=bench-%)

# These benchmarks on one backend: make bench-jax
bench-%: .venv/dev
	mkdir -p runs
	for name in $(BENCHMARKS); do \
		KERAS_BACKEND=$* $(BIN)/python benchmarks/$$name.py --out runs/bench.jsonl || exit; \
	done

# At full size; the tests run smaller notebooks.
notebooks: .venv/dev
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

# The environment with the packages of one backend, or of all backends (dev).
.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(install) ".[dev,docs,experiments,export,jax,tensorflow,torch]"
	touch $@ $(BACKENDS:%=.venv/%)

.venv/%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(install) ".[experiments,$*]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
