# All commands: make help
PYTHON ?= python3.11
VENV ?= .venv
# The environment is built anew whenever a pin changes; its marker carries the hash of all that decides what is installed.
# EXTRAS=dev,nudity,spark,ray,datasets adds what few users need; tests that need it skip without it.
EXTRAS ?= dev
PINS := $(shell { cat pyproject.toml constraints.txt; echo $(EXTRAS); } | sha256sum | cut -c1-16)
READY := $(VENV)/.ready-$(PINS)
RUN := $(VENV)/bin/python
# Tests run side by side, one file after the other in each process; a thread each, for more would only wait.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help environment serve test test-extras test-transformers4 test-cluster check quickstart audit emoji pictures finetune bench gpu fuzz clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY):
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --progress-bar on -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

environment: $(READY) ## Build the environment with the pinned versions
	@$(RUN) -P -c 'import leam_mm, pathlib, sys; sys.exit(pathlib.Path(leam_mm.__file__).parent.parent != pathlib.Path.cwd())' 2>/dev/null \
	  || $(RUN) -m pip install --quiet --no-deps -e .

quickstart: environment ## The whole way, from scenes to a release, on two CPU cores without network
	$(RUN) -m leam_mm.pipeline configs/pipeline_quickstart.yaml

audit: environment ## All audits of the quickstart and its release, the long ones too
	$(RUN) evaluate.py audit --config configs/audit_full.yaml

emoji: environment ## The real corpus: emoji drawings with Unicode names in 24 languages (needs npm)
	$(RUN) -m leam_mm.pipeline configs/pipeline_emoji.yaml

pictures: environment ## Real photographs and drawings with descriptions in 22 languages (needs npm and apt-get)
	$(RUN) -m leam_mm.pipeline configs/pipeline_pictures.yaml

finetune: environment ## A trained generator learns your pictures: make finetune FOLDER=pictures [BASE=runs/quickstart] [FIT=border] [METHOD=configs/overlay_generator_lora.yaml]
	@test -n "$(FOLDER)" || { echo "error: give FOLDER=PLACE, pictures each with its caption in a .txt beside it"; exit 2; }
	$(RUN) -m leam_mm.pipeline configs/pipeline_finetune.yaml --set folder="$(FOLDER)" --set base="$(or $(BASE),runs/quickstart)" --set run="$(or $(OUTPUT),runs/finetune)" --set fit="$(or $(FIT),no)" --set method="$(or $(METHOD),configs/finetune_generator.yaml)"

PORT ?= 7860
serve: environment ## A page to try the quickstart's release: make serve [RELEASE=DIR] [PORT=7860] (needs EXTRAS=dev,serve)
	@$(RUN) -c 'import gradio' 2>/dev/null || { echo "error: the page needs gradio; run: make serve EXTRAS=dev,serve"; exit 2; }
	$(RUN) -m leam_mm.release serve $(or $(RELEASE),runs/quickstart/release $(if $(wildcard runs/quickstart/scenes/classes.json),--classes runs/quickstart/scenes/classes.json)) --port $(PORT)

test: environment ## All CPU tests
	$(PYTEST)

# Files with tests that skip without an extra.
EXTRA_TESTS = $(addprefix tests/test_,clip_benchmark.py configs.py distributors.py documents_croissant.py documents_ml_bom.py face_detection.py folder_card.py import_samples.py model_signature.py nudity.py onnx_folder.py onnx_network.py page.py page_browser.py release_verify.py sentence_transformers_folder.py serving.py streaming_peers.py torch_fidelity.py)
test-extras: environment ## The tests that need extras: make test-extras EXTRAS=dev,nudity,spark,ray,datasets,serve,sign,peers,onnx
	$(PYTEST) $(EXTRA_TESTS)
	$(PYTEST) -m slow tests/test_page_browser.py

# The last version 4 of transformers, beside the environment: its files are read first.
TRANSFORMERS4 = runs/transformers4
test-transformers4: environment ## Releases load in transformers 4, too (needs a package index)
	test -d $(TRANSFORMERS4) || $(RUN) -m pip install -q --no-deps --target $(TRANSFORMERS4) "transformers==4.57.*" "huggingface_hub<1" "tokenizers==0.22.*"
	LEAM_MM_OTHER_TRANSFORMERS=$(abspath $(TRANSFORMERS4)) $(RUN) -m pytest tests/test_released_networks.py tests/test_transformers_folder.py tests/test_sentence_transformers_folder.py

# Slurm with two virtual nodes is started for the tests; they skip without it (Debian, Ubuntu: slurm-wlm, munge) and without root.
CLUSTER_TESTS = $(shell grep -lE 'mark\.slurm' tests/test_*.py)
test-cluster: environment ## Training jobs on a private Slurm cluster of two virtual nodes (needs root and Slurm)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slurm -rs $(CLUSTER_TESTS)

check: environment ## Lint, types, tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(PYTEST)

bench: environment ## Measure ours and peers side by side; writes runs/bench/*.json
	$(RUN) -m pytest tests/benchmarks -m bench -s

DEVICE ?= cuda
BUDGET ?= 600
gpu: environment ## Ten minutes on a GPU: its tests and short benchmarks; DEVICE=cpu for a trial; writes runs/gpu/summary.md
	PYTHONPATH=. $(RUN) tests/benchmarks/gpu_session.py --device $(DEVICE) --budget $(BUDGET)

SECONDS ?= 600
fuzz: environment ## Damaged inputs for every reader of foreign bytes: make fuzz SECONDS=600
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN) -m fuzz --seconds $(SECONDS)

clean: ## Remove runs and the environment
	rm -rf runs $(VENV)
