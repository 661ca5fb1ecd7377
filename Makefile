# make run    build .venv, install, run the main job: 1 server + 8 client ranks on the embedded digits
# make test   install and run all tests, the linter and the type checker
# make bench  quick benchmarks with their ceilings
# make kernels  compile the kernels of compact training anew, after a change of their sources
# make gpu-check  every test and benchmark for CUDA devices, as a report to paste
# make docs   the pages of docs/ as a site in build/site

PYTHON ?= python3
VENV ?= .venv
RANKS ?= 9
BIN = $(VENV)/bin
# Ranks write through pipes; tell rank 0 when a person is watching.
PROGRESS = $(if $(shell [ -t 2 ] && echo tty),live,plain)

run: $(VENV)/.installed
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m fedgmr_hpc.launch progress=$(PROGRESS) $(ARGS)

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

bench: $(VENV)/.installed
	for what in codec merge mask round; do $(BIN)/python -m fedgmr_hpc bench $$what --quick || exit 1; done

kernels: $(VENV)/.installed
	$(BIN)/python -m fedgmr_hpc.training.kernels.build

gpu-check: $(VENV)/.installed
	$(BIN)/python tests/gpu_check.py $(ARGS)

# The generated parts of pages are made anew, then the site; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

# torch goes first and alone: everything after it is small. Installing compiles the kernels.
$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(wildcard fedgmr_hpc/training/kernels/*.[ch])
	@echo "installing into $(VENV), once: torch first, which takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mpich,export,pandas,tensorboard,interactive,test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

.PHONY: run test bench kernels gpu-check docs clean
