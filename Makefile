# Each target sets up what it needs; what is there is reused. PYTHON chooses the interpreter (3.11 or later),
# TRAINING_AMQP_URL a broker; without one a private broker is started, and stopped again.
PYTHON ?= python3
BIN := .venv/bin

# How often `make soak` plays each fault.
ROUNDS ?= 20

export PYTHON
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-systemd lint types unit shape soak bench clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make the virtual environment and install what developers need
	@scripts/setup dev

demo: ## Train a tiny LoRA on this machine, from the queue to the finished adapter
	@scripts/setup demo
	@$(BIN)/training-worker demo

# Most tests wait for other processes: two files at a time take two thirds of the time.
test: lint types ## Check everything: style, types, imports, and all tests on a real broker
	$(BIN)/pytest -n 2 --dist loadfile

test-systemd: ## Play the units under real systemd in a container; needs root
	@scripts/setup systemd
	$(BIN)/pytest -m systemd tests/systemd

lint: setup ## Check style and which package may import which
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: setup ## Check types
	$(BIN)/mypy

unit: setup ## Run the fast tests: no broker, no trainer
	$(BIN)/pytest -m "not broker and not trainer and not invoke"

shape: ## Measure files, functions, arguments and folders; CHECKOUT=PATH measures another checkout
	@$(PYTHON) scripts/shape.py $(CHECKOUT)

soak: setup ## Play every fault ROUNDS times, each time at other moments, and count what was lost or done twice
	$(BIN)/python -m tests.fault.soak --rounds $(ROUNDS)

bench: setup ## Measure; prints figures, asserts nothing
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.trainer
	$(BIN)/python -m benchmarks.gpu --if-present
	$(BIN)/python -m benchmarks.beside_invoke
	$(BIN)/python -m benchmarks.pickup
	$(BIN)/python -m benchmarks.routing
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.scale
	@scripts/setup peers
	$(BIN)/python -m benchmarks.peers

clean: ## Remove the virtual environments and what tools and the demo leave
	rm -rf .venv .venv-peers .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache demo-output dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
