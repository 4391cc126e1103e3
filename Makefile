# make train    pretrain a small Mixtral on real text (NAME=, DATA=my.jsonl, FRESH=1; see examples/mixtral/README.md)
# make test     the whole test suite, against every supported release of Megatron-LM (ARGS= goes to pytest)
# make check    ruff and mypy
# make bench    side-by-side measurements
# make clean    remove .venv and the caches; keep runs/ and data/
#
# Each sets up .venv on first use.

.DEFAULT_GOAL := help
.PHONY: help venv megatron train test check bench clean

PY := .venv/bin/python

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

venv:
	@tools/setup_venv.sh

megatron: venv
	@tools/setup_megatron.sh

train: venv
	@$(PY) -m tools.train $(ARGS)

test: megatron
	@$(PY) -m pytest $(ARGS)

check: venv
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: venv
	@$(PY) -m benchmarks

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
