# Two commands do everything on a fresh machine: `make demo` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
# The policy trained here, or a random one where it was left out.
DEMO_POLICY := $(or $(wildcard examples/policies/act_libero_object_0),outputs/demo/policy)

# MuJoCo renders without a display; two threads of torch beside a simulator are slower than one.
export MUJOCO_GL ?= egl
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-gpu test-slow check format bench bench-check bench-sessions lock clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make the environment (.venv); the other commands do it by themselves

$(READY): requirements.txt pyproject.toml scripts/setup.sh
	./scripts/setup.sh $(VENV)
	@touch $@

demo: $(READY)  ## evaluate a small policy in LIBERO over an embedded server, with videos and a report
	[ -f $(DEMO_POLICY)/config.json ] || $(PYTHON) examples/random_act.py --env.type=libero \
	    --env.task=libero_object --env.task_ids='[0]' --env.observation_height=128 --env.observation_width=128 \
	    --image_size=128 --output_dir=$(DEMO_POLICY)
	$(VENV)/bin/async-delta-eval --env.type=libero --env.task=libero_object --env.task_ids='[0]' \
	    --env.observation_height=128 --env.observation_width=128 \
	    --policy_type=act --pretrained_name_or_path=$(DEMO_POLICY) --actions_per_chunk=50 \
	    --n_episodes=2 --n_videos=2 --debug_visualize_queue_size=true \
	    --plot_latency=true \
	    --output_dir=outputs/demo --overwrite=true
	$(VENV)/bin/async-delta-report outputs/demo
	@echo "Look at it: file://$(CURDIR)/outputs/demo/report.html"

test: $(READY)  ## run the tests
	$(VENV)/bin/pytest -n auto --dist loadfile -m 'not slow'

test-gpu: $(READY)  ## run what only a GPU can show
	$(VENV)/bin/pytest tests/gpu

test-slow: $(READY)  ## run the long forms too
	$(VENV)/bin/pytest -n auto --dist loadfile

check: $(READY)  ## lint, types, layers
	$(VENV)/bin/ruff check src tests benchmarks examples
	$(VENV)/bin/ruff format --check src tests benchmarks examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(READY)  ## format the code
	$(VENV)/bin/ruff check --fix src tests benchmarks examples
	$(VENV)/bin/ruff format src tests benchmarks examples

bench: $(READY)  ## compare the transports, a quarter of an hour; results in outputs/bench
	$(PYTHON) benchmarks/latency.py

bench-check: $(READY)  ## compare a quick run's ratios with the limits
	$(PYTHON) benchmarks/check.py

bench-sessions: $(READY)  ## 16 clients of one server: their total, their shares, the cost of waiting
	$(PYTHON) benchmarks/sessions.py --check

lock:  ## pin the dependencies anew in requirements.txt
	./scripts/lock.sh

clean:  ## remove the environment and what runs left
	rm -rf $(VENV) .uv outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
