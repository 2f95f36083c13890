# Each target works on a fresh clone with nothing but python3 and make: .venv is built when it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.complete

.PHONY: setup demo test lint bench

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
	$(RUN) tools/bench/bench_pooling.py
	$(RUN) tools/bench/bench_patch_hit.py
	$(RUN) tools/bench/bench_data.py
	$(RUN) tools/bench/bench_votes.py
	$(RUN) tools/bench/bench_probe.py
	$(RUN) tools/bench/bench_dino.py
	$(RUN) tools/bench/bench_object_discovery.py
	$(RUN) tools/bench/bench_clip.py
	$(RUN) tools/bench/bench_zero_shot_seg.py
	$(RUN) tools/bench/bench_fvit.py
	$(RUN) tools/bench/bench_lvis_eval.py
