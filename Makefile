# Each target works on a fresh clone with nothing but python3 and make: .venv is built when it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.complete

.PHONY: setup demo test lint bench bench-gpu

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml tools/install_detectron2.sh
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	PYTHON=$(RUN) tools/install_detectron2.sh
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) tools/demo.py

test: $(STAMP)
	$(RUN) -m pytest -n 2

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) tools/make_results_tables.py --check

bench: $(STAMP)
	$(RUN) tools/bench/run_all.py

bench-gpu: $(STAMP)
	$(RUN) tools/bench/run_all.py --gpu
