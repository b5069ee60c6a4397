# Everything a person runs. What is missing is set up first, once: .venv from requirements.lock, .kafka for the tests.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test nightly check bench reference kafka sdks browser-sdk lock clean

BIN := .venv/bin
READY := .venv/.millrace
KAFKA := .kafka/complete
BROWSER_SDK := $(or $(MILLRACE_DATA),data)/browser-sdk
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

help:
	@echo 'make run    start everything here, data in ./data (ARGS="--port 8081" and more: .venv/bin/millrace up --help)'
	@echo 'make test   lint, types and every test, on real Kafka and PostgreSQL (ARGS="tests/unit -k word" chooses)'
	@echo 'make nightly  ten thousand histories, hostile requests and bytes for half an hour'
	@echo 'make check  lint and types'
	@echo 'make bench  measure; results in benchmarks/results (ARGS chooses)'
	@echo 'make reference  write what is made from definitions: the catalogue in destinations/README.md'
	@echo 'make browser-sdk  put the browser SDK into the data folder, from where pages can load it (needs npm)'
	@echo 'make lock   renew requirements.lock from pyproject.toml (ARGS="--upgrade" for newer versions)'
	@echo 'make clean  remove what was set up; data stay'

run: $(READY)
	@exec $(BIN)/millrace up $(ARGS)

# A chosen part runs in one process, which starts at once. The broker is fetched beside .venv.
test:
	@$(MAKE) --no-print-directory -j3 kafka sdks check
	$(BIN)/python -m pytest $(or $(ARGS),-n auto --maxprocesses 4 --dist worksteal)

nightly: $(READY)
	MILLRACE_HISTORIES=10000 MILLRACE_REQUESTS=200 $(BIN)/python -m pytest --timeout 3600 \
		tests/properties/test_identity_model.py tests/contracts/test_openapi.py $(ARGS)
	$(BIN)/python -m benchmarks.fuzz --minutes 10
	$(BIN)/python -m benchmarks.fuzz_decoder -max_total_time=600 -timeout=10 -print_final_stats=1

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY) kafka
	$(BIN)/python -m benchmarks $(ARGS)

reference: $(READY)
	$(BIN)/python -m destinations.catalogue

# Hundreds of processes of the tests would each compile everything anew, which is a third of their start.
unexport PYTHONDONTWRITEBYTECODE

# ── Set-up ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# --no-build-isolation: the build tool is in the lock too, so that nothing unpinned is ever fetched.
$(READY): requirements.lock pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
		for python in $(PYTHONS); do \
			$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || continue; \
			found=$$python; \
			$$python -c 'import venv, ensurepip' 2>/dev/null || continue; \
			chosen=$$python; break; \
		done; \
		if [ -z "$$found" ]; then \
			echo 'make: Millrace needs Python 3.11 to 3.14, and none of "$(PYTHONS)" is one: install it, or name it: make PYTHON=/path/to/python3' >&2; exit 1; \
		elif [ -z "$$chosen" ]; then \
			echo "make: $$found has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
		fi; \
		echo "Setting up .venv with $$($$chosen --version), once; this takes a minute …"; \
		$$chosen -m venv --clear .venv; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@

# Without Java and Maven the tests that need the broker say so: they skip on a laptop and fail where CI is set.
kafka:
	@if [ -n "$$MILLRACE_TEST_KAFKA$$MILLRACE_KAFKA_LIBS" ]; then :; \
	elif command -v java >/dev/null && command -v mvn >/dev/null; then $(MAKE) --silent $(KAFKA); \
	else echo 'make: no Apache Kafka for the tests: install Java 17 and Maven (Debian, Ubuntu: apt install default-jre-headless maven)' >&2; fi

$(KAFKA): tools/kafka/pom.xml
	@echo 'Fetching Apache Kafka into .kafka, once …'
	@rm -rf .kafka
	@mvn -q -B -Dstyle.color=never -f tools/kafka/pom.xml generate-resources -Dkafka.libs=$(CURDIR)/.kafka/libs
	@touch $@

# The real SDKs that the tests drive. What is missing for them is said by the tests, as with the broker.
sdks: $(READY)
	@$(BIN)/python -m tests.sdks.installed

browser-sdk:
	@command -v npm >/dev/null || { echo 'make: the browser SDK needs npm (Debian, Ubuntu: apt install npm)' >&2; exit 1; }
	@rm -rf .sdks/browser && mkdir -p .sdks/browser $(BROWSER_SDK)
	@cp tools/browser-sdk/package*.json tools/browser-sdk/.npmrc .sdks/browser && cd .sdks/browser && npm ci --loglevel=error
	@cd .sdks/browser/node_modules/@segment/analytics-next && cp LICENSE.MD dist/umd/standalone.js dist/umd/*.bundle.*.js $(abspath $(BROWSER_SDK))/

lock:
	@uv=$$(command -v uv || command -v $(BIN)/uv) || { echo 'make: `make lock` needs uv: install it from your package manager, or with .venv/bin/python -m pip install uv' >&2; exit 1; }; \
	$$uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-header --no-annotate --quiet -o requirements.lock $(ARGS)

clean:
	rm -rf .venv .kafka .sdks build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
