# make demo   set up .venv, train the demonstration: runs/demo/
# make test   set up .venv, run everything that must pass
# make test-all   the same with every case, which takes about 40 minutes
# make test-keras-versions  set up .venv, test the library on other versions of Keras
# make docs   set up .venv, build the documentation: build/site/index.html
# make bench  set up .venv, measure: adds to runs/bench.jsonl
# make notebooks  set up .venv, run the notebooks: what they show is kept in them
# make clean  remove .venv and what is built

PYTHON ?= python3
BIN := .venv/bin
BACKENDS := jax tensorflow torch
BENCHMARKS := training_step plain_pytorch growth peak_memory image_data_format \
	maxout locally_connected2d export_latency beta_monitor
export KERAS_BACKEND ?= jax
export TF_CPP_MIN_LOG_LEVEL ?= 3
# What is no warning of the build, but news of the theme's successor.
export NO_MKDOCS_2_WARNING ?= 1

install = $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-all test-keras-versions check docs bench notebooks clean

demo: .venv/$(KERAS_BACKEND)
	$(BIN)/keras-invdrop demo

test: .venv/dev check $(BACKENDS:%=test-%)

# The cases that are marked `thorough`, too, and XLA as users have it.
test-all: .venv/dev
	$(MAKE) test TESTS=--thorough XLA_FLAGS=

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/mkdocs build --strict

# The tests, on one backend: make test-jax. On JAX run those, too, that say the
# same on every backend. Some wait for other processes or for the clock, so
# that a third process finds time on two cores.
test-jax: WORKERS := 3
# Half of the time of compilation, for programs that run but a few times.
test-jax: export XLA_FLAGS := --xla_cpu_use_fusion_emitters=false
test-%: WORKERS ?= 2
test-%: .venv/dev
	KERAS_BACKEND=$* $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

# The oldest Keras that is allowed, one between and the newest that there is.
test-keras-versions: test-keras-3.10.0 test-keras-3.13.2 test-keras-newest

# The library on one version: all of it on JAX, the layers on the others. Only
# Keras differs from .venv.
test-keras-%: .venv/dev
	rm -rf build/keras-$*
	$(BIN)/pip install --quiet --no-deps --target build/keras-$* keras$(if $(filter newest,$*),,==$*)
	PYTHONPATH=$(CURDIR)/build/keras-$* KERAS_BACKEND=jax $(BIN)/pytest --numprocesses 2 tests/keras_invdrop
	for backend in tensorflow torch; do \
		PYTHONPATH=$(CURDIR)/build/keras-$* KERAS_BACKEND=$$backend $(BIN)/pytest --numprocesses 2 \
			tests/keras_invdrop/layers tests/keras_invdrop/test_keras.py tests/keras_invdrop/test_golden.py || exit; \
	done

bench: $(BACKENDS:%=bench-%)

# Every benchmark, on one backend: make bench-jax
bench-%: .venv/dev
	mkdir -p runs
	for name in $(BENCHMARKS); do \
		KERAS_BACKEND=$* $(BIN)/python benchmarks/$$name.py --out runs/bench.jsonl || exit; \
	done

# At their full size; the tests run them small.
notebooks: .venv/dev
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

# The environment, with what a backend's name (or dev: all of them) stands for.
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
