# The two commands of the README: `make demo` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := model_repository/cpu/lipsync/config.pbtxt

.PHONY: demo test check setup models clean

demo: models
	$(BIN)/lipserve demo

test: models $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: test

setup: models/tritonserver/wheel.sha256
models: setup $(MODELS)

# pip is a dependency of `lipserve setup`, so a virtual environment of venv's own kind is made.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[export,models,dev]'
	touch $@

models/tritonserver/wheel.sha256: lipserve/fetch.py | $(VENV)/installed
	$(BIN)/lipserve setup
	touch $@

$(MODELS): $(wildcard models/demo/*.onnx export/*.py) lipserve/contract.py | setup
	$(BIN)/python -m export --target cpu --profile demo

clean:
	rm -rf $(VENV) .run out model_repository/cpu models/faces models/tritonserver models/perf_analyzer
