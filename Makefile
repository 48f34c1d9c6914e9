# The face of bootstrap.py; `python3 bootstrap.py TASK` does the same where there is no make.
PYTHON ?= python3
RUN = @exec $(PYTHON) bootstrap.py
WITH_PROFILE = $(if $(PROFILE),--profile $(PROFILE))

.PHONY: help book test test-browser notebook publish serve bench lock lint clean setup
help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'
book:  ## run what is out of date, render the book, print its path  [PROFILE=quick|book|paper]
	$(RUN) book $(WITH_PROFILE)
test:  ## unit tests, every notebook executed again, the book built and checked
	$(RUN) test
test-browser:  ## the rendered pages in chromium
	$(RUN) test-browser $(ARGS)
notebook:  ## one notebook: NB=03_koh_liang [PROFILE=book] [ARGS="-p n_train=300"] [DRY=1]
	$(RUN) notebook $(NB) $(WITH_PROFILE) $(if $(DRY),--dry) $(ARGS)
publish:  ## fresh runs to notebooks/ and book/results/  [PROFILE=book] [NB=03_koh_liang]
	$(RUN) publish $(WITH_PROFILE) $(NB)
serve:  ## the rendered book at http://127.0.0.1:8000  [PROFILE=book]
	$(RUN) serve $(WITH_PROFILE)
bench:  ## side-by-side measurements into benchmarks/results.json
	$(RUN) bench $(ARGS)
lock:  ## requirements.in to requirements.lock and environment.yml  [ARGS=--upgrade]
	$(RUN) lock $(ARGS)
lint:  ## ruff
	$(RUN) lint
clean:  ## remove runs and pages  [ARGS=--all: downloads, stores and .venv too]
	$(RUN) clean $(ARGS)
setup:  ## only make .venv
	$(RUN) setup
