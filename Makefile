# splitserve: `make demo` and `make test` set up what they need; `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
IMAGES ?=
TEST ?=
WEIGHTS ?=
ASSETS ?=
AUDIT ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test fmt check slim bench bench-accuracy bench-codec bench-plans bench-audit verify-models fuzz golden clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP)  ## install everything for development into .venv

$(STAMP): pyproject.toml constraints.txt hatch_build.py splitserve/codec/rans.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "the venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## split EfficientNet-Lite0 over an emulated link; AUDIT=1 also attacks what crosses it
	$(BIN)/splitserve demo $(if $(AUDIT),--audit) $(ARGS)

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest -q $(ARGS)

fmt: $(STAMP)  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: $(STAMP)  ## format, lint, types, imports: what pre-commit runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

slim: $(STAMP)  ## prove that [edge] alone encodes and talks to a cloud
	$(BIN)/python tests/slim/prove.py

fuzz: $(STAMP)  ## throw bytes at both decoders: make fuzz ARGS='--seconds 600'
	$(BIN)/python tests/fuzz.py $(ARGS)

bench: $(STAMP)  ## the slow measurements behind the figures in docs/
	$(BIN)/splitserve bench overhead
	$(BIN)/splitserve bench memory
	$(BIN)/splitserve bench borders
	$(BIN)/splitserve bench footprint

bench-accuracy: $(STAMP)  ## top-1 and top-5 on labelled pictures: make bench-accuracy IMAGES=DIR
	@test -n "$(IMAGES)" || { echo "name a folder with labels.csv: make bench-accuracy IMAGES=DIR"; exit 2; }
	$(BIN)/splitserve bench accuracy --images $(IMAGES)

verify-models: $(STAMP)  ## every single cut of every network in a folder: make verify-models WEIGHTS=DIR
	@test -n "$(WEIGHTS)" || { echo "name a folder of ONNX and safetensors files: make verify-models WEIGHTS=DIR"; exit 2; }
	$(BIN)/python tests/verify_models.py $(WEIGHTS)

bench-codec: $(STAMP)  ## the feature codec against JPEG, WebP and others: make bench-codec IMAGES=DIR TEST=DIR
	@test -n "$(IMAGES)" -a -n "$(TEST)" \
	    || { echo "name pictures to fit to and others to measure on: make bench-codec IMAGES=DIR TEST=DIR"; exit 2; }
	$(BIN)/splitserve export efficientnet_lite0 -o build/efficientnet_lite0.onnx
	$(BIN)/splitserve split build/efficientnet_lite0.onnx -o build/codec/artifact
	$(BIN)/splitserve calibrate build/codec/artifact --images $(IMAGES) --limit 1000
	$(BIN)/splitserve bench codec build/codec/artifact --images $(TEST) -o build/codec
	$(BIN)/splitserve bench coders build/codec/artifact --images $(TEST)
	$(BIN)/splitserve bench temporal build/codec/artifact --cuts block3,block5,block11

bench-plans: $(STAMP)  ## every way to run the artifact of bench-codec over emulated links: make bench-plans IMAGES=DIR
	@test -n "$(IMAGES)" || { echo "name pictures that nothing was fitted to: make bench-plans IMAGES=DIR"; exit 2; }
	$(BIN)/splitserve bench e2e build/codec/artifact --images $(IMAGES) $(ARGS)

bench-audit: $(STAMP)  ## the audit's acceptance gates on CIFAR-10 networks: make bench-audit ASSETS=DIR
	@test -n "$(ASSETS)" || { echo "name a folder with weights/ and images/: make bench-audit ASSETS=DIR"; exit 2; }
	@pictures="--test $(ASSETS)/images/cifar10_test_2000.npz --train $(ASSETS)/images/cifar10_train_5000.npz"; status=0; \
	$(BIN)/splitserve bench gates $(ASSETS)/weights/cifar10_resnet20.safetensors $$pictures $(ARGS) || status=$$?; \
	$(BIN)/splitserve bench published $$pictures || status=$$?; \
	exit $$status

golden:  ## decode and encode the golden bytes with another Python, of an ARM board say: make golden PYTHON=python3
	$(PYTHON) tests/arm64/prove.py

clean:  ## remove what the targets made, the environment too
	rm -rf $(VENV) $(VENV)-slim build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
