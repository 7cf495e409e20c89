# `make help` lists what there is to do.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SILENT:
.PHONY: help setup search train evaluate finetune report experiments-quick test test-all lint types format bench docs clean always

override SHELL := /bin/sh
override INSTALLED := .venv/.installed
override PY := .venv/bin/python
override EXTRAS := bench cuda docs prepare tpu

# The variables that the commands take, each with its flag.
override DATA_FLAGS := MODEL:model DATA:data DATA_DIR:data-dir PREPROCESSING:preprocessing SEED:seed OUT:out
override search_FLAGS := $(DATA_FLAGS) IMAGE_SIZE:image-size SEARCH_IMAGES:search-images REPORT_IMAGES:report-images \
  WEIGHTS:weights HW:hw METRIC:metric BUDGET:budget MAX_DROP:max-drop FRONT:front LAYERS:layers TIE:tie SEARCH:search \
  EXTENSIONS:extensions EPISODES:episodes PATIENCE:patience PARALLEL:parallel WARM_START:warm-start ROUNDING:rounding RACE:race CUTS:cuts \
  FINETUNE_STEPS:finetune-steps RESUME:resume HOSTS:hosts
override train_FLAGS := $(DATA_FLAGS)
override evaluate_FLAGS := RUN:run
override finetune_FLAGS := RUN:run SEED:seed EPOCHS:epochs BATCH_SIZE:batch-size LEARNING_RATE:learning-rate \
  CLIP_RATE:clip-rate CODEBOOK_RATE:codebook-rate DISTILL:distill
override report_FLAGS := RUN:run OUT:out
override setup_FLAGS := EXTRA:

# What make is given are values, not programs: nothing in them is expanded.
$(if $(filter command,$(origin name)),$(error there is no variable name=: see make help)) # what foreach calls its own
override given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(given),$(eval override export $(name) := $$(value $(name))))
override EXTRA := $(value EXTRA)

# A name that the target does not take, and an empty value, would leave a default in its place without a word.
override goals := $(or $(MAKECMDGOALS),help)
override taken := HAQJAX_CACHE PYTHON $(foreach goal,$(goals),$(foreach pair,$($(goal)_FLAGS),$(firstword $(subst :, ,$(pair)))))
override strange := $(firstword $(filter-out $(taken),$(given)))
override empty := $(firstword $(foreach name,$(given),$(if $(strip $(value $(name))),,$(name))))
$(if $(strange),$(error make $(goals) takes no $(strange)=: see make help, or write it before make, as a variable of the environment))
$(if $(empty),$(error $(empty) is empty: give it a value or leave it out))
ifneq ($(filter setup,$(goals)),)
$(if $(word 2,$(EXTRA))$(filter-out $(EXTRAS),$(EXTRA)),$(error EXTRA is one of $(EXTRAS)))
endif
override export HAQJAX_CACHE := $(or $(value HAQJAX_CACHE),$(CURDIR)/.cache/haqjax)

# A variable becomes a flag where it is set, and whatever it holds stays one word.
override flag = $${$1:+--$2="$$$1"}
override flags = $(foreach pair,$($1_FLAGS),$(call flag,$(firstword $(subst :, ,$(pair))),$(lastword $(subst :, ,$(pair)))))

# What make help says of the variables: lines that begin with two hashes. A test compares them with the recipes.
## Network and data (search; train takes MODEL, DATA, DATA_DIR, PREPROCESSING, SEED and OUT, too)
##   MODEL           mobilenet_v1, mobilenet_v2 (the default), resnet50, resnet20 or resnet56; or module:function
##                   that returns a network of your own, see docs/howto/own-network.md
##   WEIGHTS         trained weights: a folder of make train, a .safetensors file, timm:NAME or hf:OWNER/REPOSITORY
##   DATA            digits (the default, no download), tfds:NAME, folder:PATH or npz:FILE
##   DATA_DIR        folder of the tfds sets
##   PREPROCESSING   how images are scaled and cropped: torchvision, timm, cifar, ... or none
##   IMAGE_SIZE      height and width of the images
##   SEARCH_IMAGES   images to choose policies by, at most
##   REPORT_IMAGES   images to report on, at most
##
## Machine and budget (search)
##   HW              edge (the default), cloud, bitfusion, or the path of a machine's YAML file or of a measured table
##   METRIC          what the budget limits: latency (the default), energy, size, bops, memory; several with commas
##   BUDGET          fraction of the 8-bit cost, such as 0.6, or a limit with its unit, 3ms or 900KiB; one a metric
##   FRONT           a resource: finds a policy within each of several budgets of it; METRIC by default, without
##                   BUDGET and MAX_DROP
##   MAX_DROP        points of accuracy that may be lost: finds the cheapest policy
##   LAYERS          rules on layers by name, LAYERS='stem=8; *.depthwise=4-8'
##   TIE             layers that have the same bits, TIE='blocks.1.project+blocks.2.project'
##
## Search (search)
##   SEARCH          ilp (the default), haq, evolution, gradient, svg, greedy, uniform or random
##   EXTENSIONS      of haq, with commas between: start, swap, costs, retain, twin, loss
##   EPISODES        policies to evaluate at most, 400 by default
##   PATIENCE        rounds without a gain after which it ends, 25 by default; 0 goes on to EPISODES
##   PARALLEL        policies a round, 4 by default
##   SEED            of the search; in train of the training, in finetune of the order of the images
##   WARM_START      run folder whose agent the new agent of haq starts from
##
## Evaluation and calibration (search)
##   ROUNDING        output (the default: least error at each layer's output) or nearest
##   RACE            chance of an error at which a policy is given up early, such as 0.01
##   CUTS            places at which ilp keeps what the widest policy gives, to probe single layers faster
##   FINETUNE_STEPS  batches of fine-tuning under each policy before it is evaluated
##
## Run and resume
##   RUN             run folder for evaluate, finetune and report; report takes several, RUN="runs/a runs/b"
##   OUT             folder to write: search, train, report
##   RESUME          run folder of a search that was stopped: goes on to the same result
##   HOSTS           processes that search together: ADDRESS:PORT,PROCESS/PROCESSES, or auto
##
## Fine-tune (finetune)
##   EPOCHS          3 by default
##   BATCH_SIZE      32 by default
##   LEARNING_RATE   of the weights
##   CLIP_RATE       learning rate of the clip values; 0, the default, leaves them as they are
##   CODEBOOK_RATE   learning rate of the codebooks; 0, the default, leaves them as they are
##   DISTILL         weight of the float network's answers in the loss, 0 to 1
##
## Setup
##   PYTHON          the Python that makes .venv, 3.11 or newer
##   EXTRA           cuda or tpu: make setup adds JAX for that accelerator; or bench, docs, prepare
##   HAQJAX_CACHE    folder of compiled programs and trained networks
##
## A value is passed on as it is written, whatever it holds. It cannot be empty, but for a variable of the environment, which
## then counts as not set.
##
## More options, and the details: .venv/bin/python -m haqjax search --help (or train, finetune, table, hardware, ...)

help: ## list the targets and the variables
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile
	echo
	awk '/^##( |$$)/ { print substr($$0, 4) }' Makefile

setup: $(INSTALLED)-dev $(addprefix $(INSTALLED)-,$(filter $(EXTRAS),$(EXTRA))) ## install everything in .venv
	echo "haqjax is installed in .venv"

search: $(INSTALLED)-dev ## find a policy: MODEL=resnet50 HW=cloud ...
	exec $(PY) -m haqjax search $(call flags,search)

train: $(INSTALLED)-dev ## train and keep the float network: MODEL=resnet50 DATA=digits ...
	exec $(PY) -m haqjax train $(call flags,train)

evaluate: $(INSTALLED)-dev ## measure the policy of a run again: RUN=runs/...
	exec $(PY) -m haqjax evaluate $(call flags,evaluate)

finetune: $(INSTALLED)-dev ## fine-tune the network under the policy of a run: RUN=runs/...
	exec $(PY) -m haqjax finetune $(call flags,finetune)

# RUN is a folder, or several with blanks between; no pattern and no further flag.
report: $(INSTALLED)-dev ## write report.html and figures: RUN=runs/... or RUN="runs/a runs/b"
	case " $$RUN" in *" -"*) echo "RUN holds a word that begins with -: write ./ before it" >&2; exit 2 ;; esac; \
	set -f; if [ -d "$$RUN" ]; then set -- "$$RUN"; else set -- $$RUN; fi; \
	exec $(PY) -m haqjax report $(call flag,OUT,out) $${1:+--run "$$@"}

# Into a new folder each time. What has no main part is read by the others.
experiments-quick: $(INSTALLED)-dev ## run every experiment of experiments/, small, within 10 minutes
	set -e; mkdir -p runs; folder=$$(mktemp -d runs/quick-XXXXXX); \
	for script in $$(grep -l __main__ experiments/*.py); do \
	  $(PY) "$$script" --quick --out "$$folder/$$(basename "$$script" .py)"; \
	done

test: lint types ## lint, types, tests, and the examples in the documentation
	$(PY) -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: lint types ## the same with the tests that take minutes, as continuous integration does
	$(PY) -m pytest -q -n 2 --dist worksteal

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
$(addprefix $(INSTALLED)-,dev $(EXTRAS)): $(INSTALLED)-%: pyproject.toml $(if $(wildcard $(PY)),,always)
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
