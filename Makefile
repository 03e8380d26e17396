# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test search lint types train-emoji validate-emoji study ladder results axes paper-tables bench bench-wide models-page bench-vision vision-train data-cifar10 faults test-browser test-comfyui screenshots clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "erase-sd needs Python 3.10 or newer; set PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "python3-venv is missing: apt install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV) (once, a minute or two) ..."
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## erase "cat" from the embedded model; ends by naming the picture and the report
	@$(BIN)/erase-concept erase --forget cat --forget kitten --name cat --out demo-output --force

test: $(STAMP)  ## the whole test suite
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

search: $(STAMP)  ## the property tests alone, on 2,000 new examples each; minutes
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-profile=search tests/test_parsers.py tests/algebra

test-browser: $(STAMP)  ## the demo in a real Chromium, headless; installs it on Debian; about 4 minutes
	@test -x $${CHROMIUM:-/usr/bin/chromium} || { apt-get update -q && apt-get install -q -y chromium; } \
	  || { echo "install Chromium and set CHROMIUM=/path/to/it" >&2; exit 2; }
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,browser]'
	@$(BIN)/python -m pytest -m browser --no-header tests/demo/browser -s

test-comfyui: $(STAMP)  ## the nodes in a ComfyUI of yours: COMFYUI=folder, COMFYUI_PYTHON=its interpreter (with pytest)
	@ERASE_SD_COMFYUI="$(COMFYUI)" $(or $(COMFYUI_PYTHON),$(BIN)/python) -m pytest -m host tests/hosts

screenshots: export ERASE_SD_SCREENSHOTS = docs
screenshots: test-browser  ## the same, and keep its pictures in docs/

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

types: $(STAMP)
	@$(BIN)/mypy

train-emoji: $(STAMP)  ## train emoji-sd from nothing into build/emoji; resumes
	@$(BIN)/python -m lab.train_emoji --out build/emoji

validate-emoji: $(STAMP)  ## measure the shipped weights; writes docs/measured/emoji-sd.md
	@$(BIN)/python -m lab.emoji_sd

study: $(STAMP)  ## compare all methods on the embedded model; writes docs/measured/method-study.md
	@$(BIN)/python -m lab.method_study

ladder: $(STAMP)  ## attacks by what the attacker has; writes docs/measured/ladder.md; hours, resumes
	@$(BIN)/python -m lab.ladder

results: $(STAMP)  ## every method on every offline protocol; writes docs/measured/results.md; 30 minutes, resumes
	@$(BIN)/python -m lab.results

axes: $(STAMP)  ## all methods, trained ones too, on every axis; writes docs/measured/axes.md; hours, resumes
	@$(BIN)/python -m lab.axes $(if $(QUICK),--quick)

paper-tables: $(STAMP)  ## the papers' tables on MODEL; checks first, hours on a GPU, resumes; REHEARSE=1 tries it offline
	@$(if $(REHEARSE),,HF_HUB_OFFLINE=0) $(BIN)/python -m lab.paper_tables $(if $(REHEARSE),--rehearse,$(if $(MODEL),--model $(MODEL)) $(ARGS))

bench: $(STAMP)  ## speed and memory at real size; writes docs/measured/performance.md; 25 GB, 15 minutes
	@$(BIN)/python -m lab.speed

bench-wide: $(STAMP)  ## seconds and memory of a solve by the width of the features; writes docs/measured/wide.md; minutes
	@$(BIN)/python -m lab.wide

models-page: $(STAMP)  ## the table of all models; writes docs/measured/models.md
	@$(BIN)/python -m lab.models_page

bench-vision: $(STAMP)  ## unlearning in classifiers and CLIP; writes docs/measured/vision.md; two hours, resumes
	@$(BIN)/python -m lab.vision_study

vision-train: $(STAMP)  ## the ResNet-20 of that page and its Retrains alone; resumes
	@$(BIN)/python -m lab.vision_train --forget class:0 --forget class:3 --forget class:8

data-cifar10: $(STAMP)  ## CIFAR-10 and the public ResNets from their sources, with hashes, into build/data
	@$(BIN)/python -m lab.data_cifar10

faults: $(STAMP)  ## kill, fill, damage: writes docs/measured/faults.md
	@$(BIN)/python -m lab.faults

clean:
	rm -rf $(VENV) build demo-output .pytest_cache .mypy_cache .ruff_cache
