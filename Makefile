# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
# `make test VENV=.venv313 PYTHON=python3.13` runs them in another environment.
VENV ?= .venv
PY := $(VENV)/bin/python
export VENV
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo classify-demo label-demo names-demo finetune-demo lvis-table test lint docs bench

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install:  ## make $(VENV) with everything in it (again: nothing to do)
	@bash scripts/install.sh

demo: install  ## recognise the embedded demo world, retrieval only and RAR, and print one table
	@$(PY) demo/run_demo.py

classify-demo: install  ## few-shot recognition of an embedded world of whole photos: every classifier alone and ranked
	@$(PY) demo/make_few_shot_world.py --out data/demo_few_shot --seed 0
	@$(PY) -m rar_mmdet.cli classify configs/classification/demo.py --shots 1 4 16 --seeds 1 2 3 \
		--offered 2 5 10 20 --out work_dirs/classify-demo

label-demo: install  ## label the demo's photos with boxes that are found, against the truth, and make the review page
	@$(PY) demo/run_label_demo.py

names-demo: install  ## the same photos with their names hidden: find names, and recognise by them
	@$(PY) demo/make_few_shot_world.py --out data/demo_few_shot --seed 0
	@$(PY) demo/make_dictionary.py --out data/demo_dictionary
	@for finder in wordnet mllm; do $(PY) -m rar_mmdet.cli names find configs/classification/demo_names.py \
		--finder $$finder --seeds 1 2 3 --out work_dirs/names-demo/found || exit 1; done
	@$(PY) -m rar_mmdet.cli classify configs/classification/demo_names.py --rows text ours \
		--names work_dirs/names-demo/found/wordnet-*.json --out work_dirs/names-demo/wordnet
	@$(PY) -m rar_mmdet.cli classify configs/classification/demo_names.py --rows all \
		--names work_dirs/names-demo/found/mllm-*.json --out work_dirs/names-demo/mllm

lvis-table: install  ## the paper's Table 3, as far as data, weights and a GPU are here (ARGS="--dry-run" tells what is not)
	@$(PY) -m rar_mmdet.cli table lvis $(ARGS)

finetune-demo: install  ## teach a model to rank on two sources, and see it rank classes of neither
	@$(PY) demo/run_finetune_demo.py

test: install  ## run the tests (offline, CPU; a process a core, at most four)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses=4 --dist loadfile

lint: install  ## ruff (lint and format) and mypy, pinned
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

docs: install  ## the pages and the API as a site: build/docs/index.html
	@$(PY) -m sphinx -q -W --keep-going docs build/docs
	@echo "site      build/docs/index.html"

bench: install  ## run every benchmark; each prints ratios against a named baseline of the same run
	@for b in benchmarks/*.py; do echo "== $$b"; $(PY) $$b || exit 1; done
