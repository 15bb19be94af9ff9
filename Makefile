# On a fresh machine with Python 3.11 or newer and make: `make demo` and `make test` do all the set-up.
PYTHON ?= python3
BIN := .venv/bin
# Write compiled modules even if the environment forbids it: each of the tests' many processes would compile torch again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long lint docs package clean

demo: .venv/user
	rm -rf demo
	$(BIN)/doublehead synthesize demo/data --train 640 --val 20 --test 60
	$(BIN)/doublehead train demo/data --model double-head-fused-lite --output demo/run \
		--set train.epochs=2 --set train.evaluate_every=2 --set data.augment.colour=0 \
		--set model.input.short_side=160 --set model.input.long_side=240
	$(BIN)/doublehead evaluate demo/run/best.safetensors demo/data --split test --output demo/evaluation
	$(BIN)/doublehead predict demo/run/best.safetensors 'demo/data/test/00000*.jpg' --output demo/predictions
	@echo
	@echo "Picture      demo/run/predictions.jpg (truth on the left)"
	@echo "Report       demo/evaluation/index.html"
	@echo "Next         .venv/bin/doublehead train path/to/your/dataset"

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

test-long: .venv/dev .venv/litert/done
	DOUBLEHEAD_LONG=1 DOUBLEHEAD_FUZZ=1000 DOUBLEHEAD_KILLS=3 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist worksteal \
		--cov=doublehead --cov-report=term:skip-covered
	DOUBLEHEAD_LONG=1 .venv/litert/bin/python -m pytest tests/deploy/test_litert.py

lint: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/hadolint packaging/Dockerfile

docs: .venv/dev
	$(BIN)/mkdocs build --strict

package: .venv/dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv demo dist site

.venv/user: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[plots,lite]"
	@touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	@touch $@

# An environment of its own: the converter to LiteRT limits the versions of torch and of much else.
.venv/litert/done: .venv/dev
	$(PYTHON) -m venv .venv/litert
	.venv/litert/bin/python -m pip install --quiet --editable ".[litert,serve,plots,lite]" pytest pytest-xdist hypothesis httpx
	@touch $@
