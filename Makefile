# make demo: a teacher with one tokenizer teaches a student with another, offline, in a few minutes.
# make test: everything that CI checks.
# make families: every family of transformers that has a causal language model, small and random, through kdkit; half an hour.
# make floors: the fast tests with the oldest versions that settings.ini allows.
# make wheel: dist/kdkit-*.whl, with nothing but Python; for a machine without a network.
# make faults: the long form of tests/faults (kills, damage, full disks) and of the alignment fuzzer; half an hour. make mutants: one line changed at a time, does a test notice?
# make audit: the installed versions against known vulnerabilities, with pip-audit in an environment of its own; says how many of them anybody knew, and fails where it was none.
# make newest: the fast tests with the newest versions that settings.ini allows.
PYTHON ?= python3
BIN    := .venv/bin

.PHONY: demo test fast families floors faults mutants audit newest wheel export clean

demo: .venv/.installed
	$(BIN)/kdkit demo

test: .venv/.installed-dev
	bash scripts/check

fast: .venv/.installed-dev
	bash scripts/check -m "not slow and not long"

families: .venv/.installed-dev
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python tests/families.py

floors:
	PYTHON="$(PYTHON)" bash scripts/floors

wheel:
	$(PYTHON) scripts/backend.py dist

faults: .venv/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 MPLBACKEND=agg $(BIN)/python -m pytest -q -m "long or not long" tests/faults tests/test_edges.py tests/test_door.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python tests/fuzz_align.py 25000

mutants: .venv/.installed-dev
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python tests/mutants.py 30

audit: .venv/.installed
	test -d .venv-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv-audit/pins.txt
	.venv-audit/bin/python scripts/audit.py .venv-audit/pins.txt .venv-audit/bin/pip-audit

newest:
	PYTHON="$(PYTHON)" bash scripts/newest

# notebooks -> package and README
export: .venv/.installed-dev
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python scripts/readme.py

.venv/.installed: settings.ini scripts/backend.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Python %d.%d was found, but kdkit needs 3.10 to 3.13: make PYTHON=/path/to/python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-floors .venv-audit build dist *.egg-info runs/demo
