# Everything happens in .venv; the only things needed are Python 3.11 or newer with venv, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: install demo stack stack-down bench test test-system chaos lint format lock ui clean

install: .venv/.installed

# The lock holds exact versions and no address, so that any index serves it. uv's cache makes a second install cheap.
# Compiled at once: else each of the many processes of a sweep compiles torch and Ray for itself where it may not write.
.venv/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# The main job in small and offline: a sweep on scanned digits, the best model registered, pulled, and used.
demo: install
	$(BIN)/tood sweep sweeps/demo output=$(RUNS) data.root=$(RUNS)/digits
	rm -rf $(RUNS)/demo
	$(BIN)/tood pull models:/tood-demo@champion --set output=$(RUNS) --output $(RUNS)/demo/model
	$(BIN)/tood predict $(RUNS)/demo/model $(RUNS)/digits/val --output $(RUNS)/demo/detections
	@echo
	@echo "look at:   $(RUNS)/demo/detections/*.png"
	@echo "runs:      make ui   (then open the two links that the sweep printed)"

# A cluster on this machine without containers: two Ray nodes, MLflow on PostgreSQL, an S3 server; infra/README.md says more.
stack: install
	$(BIN)/python -m infra.local.stack up --folder $(RUNS)/stack

stack-down: install
	$(BIN)/python -m infra.local.stack down --folder $(RUNS)/stack

# What training and detection cost on this machine, in under ten minutes; cost against size as a picture.
bench: install
	$(BIN)/tood bench all --plot $(RUNS)/bench/growth.png

# Side by side, a file's tests in one process: what they share is made once, and one process alone starts Ray.
test: install
	$(TEST) -m "not system" --numprocesses logical --maxprocesses 4 --dist loadfile tests

test-system: install
	$(TEST) -m system tests

# Harm with a seed and a count, then one table of it all; `make test` holds a short cut of each program.
chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.system.chaos

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Newest versions that fit pyproject.toml, written without the index's address.
lock: install
	$(BIN)/uv pip compile --quiet --upgrade --no-annotate --no-header --no-emit-index-url --python-version 3.11 \
		--extra dev pyproject.toml --output-file requirements.lock

ui: install
	$(BIN)/tood ui output=$(RUNS)

clean:
	rm -rf .venv build *.egg-info
