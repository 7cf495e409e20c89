# `make help` lists what there is to do.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SILENT:
.PHONY: help setup search train evaluate finetune report experiments-quick test lint types format bench docs clean always

INSTALLED := .venv/.installed
PY := .venv/bin/python
export HAQJAX_CACHE ?= $(CURDIR)/.cache/haqjax

# A variable becomes a flag where it is set, and whatever it holds stays one word.
flag = $${$1:+--$2="$$$1"}

help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile
	echo
	echo "  make search MODEL=resnet50 HW=cloud BUDGET=0.6 finds how many bits each layer should have. It also takes"
	echo "  DATA, DATA_DIR, WEIGHTS, METRIC (latency, energy, size, bops, memory), SEARCH, EPISODES, LAYERS, TIE, SEED,"
	echo "  FINETUNE_STEPS, RESUME, OUT (the run folder) and more;"
	echo "  '.venv/bin/python -m haqjax search --help' says what each one means."
	echo "  The first target that needs them installs haqjax's requirements in .venv; PYTHON=... chooses the Python, 3.11"
	echo "  or newer. make setup EXTRA=cuda (or tpu) adds JAX for that accelerator."

setup: $(INSTALLED)-dev $(EXTRA:%=$(INSTALLED)-%) ## install everything in .venv
	echo "haqjax is installed in .venv"

search: $(INSTALLED)-dev ## find a policy: MODEL=resnet50 HW=cloud ...
	exec $(PY) -m haqjax search $(call flag,MODEL,model) $(call flag,HW,hw) $(call flag,DATA,data) \
	  $(call flag,DATA_DIR,data-dir) $(call flag,PREPROCESSING,preprocessing) $(call flag,METRIC,metric) \
	  $(call flag,BUDGET,budget) $(call flag,MAX_DROP,max-drop) $(call flag,FRONT,front) $(call flag,LAYERS,layers) $(call flag,TIE,tie) $(call flag,SEARCH,search) $(call flag,ADDITIONS,additions) $(call flag,RACE,race) $(call flag,CUTS,cuts) \
	  $(call flag,EPISODES,episodes) $(call flag,PARALLEL,parallel) $(call flag,ROUNDING,rounding) \
	  $(call flag,SEED,seed) \
	  $(call flag,IMAGE_SIZE,image-size) $(call flag,SEARCH_IMAGES,search-images) \
	  $(call flag,REPORT_IMAGES,report-images) $(call flag,WEIGHTS,weights) \
	  $(call flag,FINETUNE_STEPS,finetune-steps) $(call flag,WARM_START,warm-start) $(call flag,RESUME,resume) \
	  $(call flag,OUT,out) $(call flag,HOSTS,hosts)

train: $(INSTALLED)-dev ## train and keep the float network: MODEL=resnet50 DATA=digits ...
	exec $(PY) -m haqjax train $(call flag,MODEL,model) $(call flag,DATA,data) $(call flag,DATA_DIR,data-dir) \
	  $(call flag,PREPROCESSING,preprocessing) $(call flag,SEED,seed) $(call flag,OUT,out)

evaluate: $(INSTALLED)-dev ## measure the policy of a run again: RUN=runs/...
	exec $(PY) -m haqjax evaluate $(call flag,RUN,run)

finetune: $(INSTALLED)-dev ## fine-tune the network under the policy of a run: RUN=runs/...
	exec $(PY) -m haqjax finetune $(call flag,RUN,run) $(call flag,EPOCHS,epochs) $(call flag,BATCH_SIZE,batch-size) \
	  $(call flag,LEARNING_RATE,learning-rate) $(call flag,CLIP_RATE,clip-rate) \
	  $(call flag,CODEBOOK_RATE,codebook-rate) $(call flag,DISTILL,distill) $(call flag,SEED,seed)

# RUN is split at blanks: one folder a word.
report: $(INSTALLED)-dev ## write report.html and figures: RUN=runs/... or RUN="runs/a runs/b"
	exec $(PY) -m haqjax report $(call flag,OUT,out) $${RUN:+--run $$RUN}

# Into a new folder each time. What has no main part is read by the others.
experiments-quick: $(INSTALLED)-dev ## run every experiment of experiments/, small, within 10 minutes
	set -e; mkdir -p runs; folder=$$(mktemp -d runs/quick-XXXXXX); \
	for script in $$(grep -l __main__ experiments/*.py); do \
	  $(PY) "$$script" --quick --out "$$folder/$$(basename "$$script" .py)"; \
	done

test: lint types ## lint, types, tests, and the examples in the documentation
	$(PY) -m pytest -q -n 2

lint: $(INSTALLED)-dev ## layout and lint, changing nothing
	$(PY) -m ruff format --quiet --check .
	$(PY) -m ruff check --quiet .

types: $(INSTALLED)-dev ## check the types
	$(PY) -m mypy --no-error-summary

format: $(INSTALLED)-dev ## lay out the code and mend what can be mended
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(INSTALLED)-dev $(INSTALLED)-bench ## measure the speeds that the project claims
	set -e; for script in benchmarks/*.py; do $(PY) "$$script"; done

docs: $(INSTALLED)-docs ## build the documentation: build/docs/index.html
	$(PY) -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/docs
	echo "the documentation is in build/docs/index.html"

clean: ## remove caches; runs and .venv stay
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The mark is written last, so an installation that broke off is done again, and so is one whose Python has gone.
$(INSTALLED)-%: pyproject.toml $(if $(wildcard $(PY)),,always)
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
	  python=; \
	  for candidate do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "haqjax needs Python 3.11 or newer, and $$* is not: name one with PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  echo "haqjax: setting up .venv with $$("$$python" --version), once"; \
	  "$$python" -m venv --clear .venv; \
	fi
	echo "haqjax: installing the requirements ($*) in .venv, a minute or two"
	$(PY) -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	$(PY) -c 'import matplotlib.font_manager' 2>/dev/null # builds its font cache, with a message, on first use
	touch $@
