# make train    pretrain a small Mixtral on real text (NAME=, DATA=my.jsonl, FRESH=1; see examples/mixtral/README.md)
# make evaluate 1000 real questions of MMLU to the model that make train left (NAME=, ARGS="--limit 100"; docs/evaluation.md)
# make test     the test suite, against every supported release of Megatron-LM (ARGS= goes to pytest, WORKERS=2)
# make test-npu the half of it that runs on the simulated NPU
# make test-all the same with what takes longest: every release with 8 processes and both checkpoint formats, every
#               layout on the simulated NPU
# make system-test       determinism, crashes, layouts, transformers as the reference, two nodes, the simulated NPU, all of
#               it with a report: runs/system-test/report.md
# make test-checkouts MEGATRON_PATHS="DIR ..."  train the stock pretrain_gpt.py of Megatron-LM checkouts, on the cpu
#               device and on the simulated NPU
# make check    ruff and mypy
# make bench    side-by-side measurements
# make long-context      the script of 32768 tokens, at reduced width, on eight simulated NPUs: ten minutes, 8 GB
# make clean    remove .venv and the caches; keep runs/ and data/
#
# Each sets up .venv on first use.

.DEFAULT_GOAL := help
.PHONY: help venv megatron train evaluate test test-host test-npu test-all system-test test-checkouts check bench \
	long-context clean

PY := .venv/bin/python

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

venv:
	@tools/setup_venv.sh

megatron: venv
	@tools/setup_megatron.sh

train: venv
	@$(PY) -m tools.train $(ARGS)

evaluate: venv
	@$(PY) -m tools.evaluate $(ARGS)

# Two workers: most of a run of one process is import and start.
WORKERS ?= 2
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadgroup

ON_NPU := .venv/bin/ascend-sim run --
FAST := not slow and not checkouts
# ARGS may name tests of one half only: pytest's 5 says that none were there for the other.
OR_NONE := || [ $$? -eq 5 ]

test: test-host test-npu

test-host: megatron
	@$(PYTEST) -m "$(FAST) and not npu and not simulator" $(ARGS) $(OR_NONE)

test-npu: megatron
	@$(ON_NPU) $(PYTEST) -m "$(FAST) and (npu or simulator)" $(ARGS) $(OR_NONE)

test-all: megatron
	@$(PYTEST) -m "not checkouts and not npu and not simulator" $(ARGS) $(OR_NONE)
	@$(ON_NPU) $(PYTEST) -m "not checkouts and (npu or simulator)" $(ARGS) $(OR_NONE)

SYSTEM_RECORDS := runs/system-test/host.json runs/system-test/npu.json

# The report is made of what has failed, too, and says so.
system-test: megatron
	@rm -f $(SYSTEM_RECORDS)
	-@$(PYTEST) tests/system_tests -m "system and not npu" --records $(word 1,$(SYSTEM_RECORDS)) $(ARGS)
	-@$(ON_NPU) $(PYTEST) tests/system_tests -m "system and npu" --records $(word 2,$(SYSTEM_RECORDS)) $(ARGS)
	@$(PY) -m tests.system_tests.report runs/system-test $(SYSTEM_RECORDS)

test-checkouts: venv
	@$(PY) -m pytest -m "checkouts and not npu" tests/system_tests $(MEGATRON_PATHS:%=--megatron-path %) $(ARGS)
	@$(ON_NPU) $(PY) -m pytest -m "checkouts and npu" tests/system_tests $(MEGATRON_PATHS:%=--megatron-path %) $(ARGS)

check: venv
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: venv
	@$(PY) -m benchmarks
	@$(PY) -m benchmarks.npu_work
	@$(PY) -m benchmarks.context_parallel
	@$(PY) -m benchmarks.comm_work
	@$(PY) -m benchmarks.determinism
	@$(PY) -m benchmarks.preprocess
	@$(PY) -m benchmarks.convert
	@$(PY) -m benchmarks.generate

long-context: venv
	@rm -rf runs/long_context/checkpoint
	@$(PY) -m benchmarks.long_context $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
