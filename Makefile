## make run         serve the demo model on http://localhost:8080
##   MODEL=         another model: a name (see docs/models.md), a file or a URL; CONFIG=, LABELS= for a checkpoint of your own
##   INT8=1         quantise it, calibrated on public photographs, or on the folder CALIBRATE=
##   PORT=          another port
## make test        run the linters and the tests
PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run check-model test lint style test-slow beam-test bench bucket image-test clean

help:
	@sed -n 's/^## //p' Makefile

ZOO := segment/zoo/models.toml
# A file in .onnx is served as it is; everything else is converted.
CONVERTER = $(if $(filter-out %.onnx,$(MODEL)),$(VENV)/convert)

run: check-model $(VENV)/serving $(CONVERTER)
	@OPENBLAS_NUM_THREADS=1 SEGMENT_CACHE=$${SEGMENT_CACHE-.cache/models} PORT=$(PORT) FUNCTION_TARGET=segment_http \
	  $(BIN)/python -m segment serve $(if $(MODEL),--model "$(MODEL)") $(if $(CONFIG),--config "$(CONFIG)") \
	  $(if $(LABELS),--labels "$(LABELS)") $(if $(INT8),--int8) $(if $(CALIBRATE),--calibrate "$(CALIBRATE)")

# What MODEL names is checked before anything is installed: a URL, a file, or a name of the zoo. `segment serve` checks the rest.
check-model:
	@case "$(MODEL)" in \
	  ""|*://*) ;; \
	  */*|*.*) test -f "$(MODEL)" || { echo "There is no file $(MODEL)." >&2; exit 1; }; \
	    case "$$(echo "$(MODEL)" | tr A-Z a-z)" in *.onnx|*.pkl|*.pth|*.pt|*.ckpt) ;; *) \
	      echo "$(MODEL) is not a model: the name of a model file ends in .onnx, .pkl, .pth, .pt or .ckpt." >&2; exit 1;; esac ;; \
	  *) grep -q "^\[models\.$(MODEL:-int8=)\]" $(ZOO) || { sed -n 's/^\[models\.\(.*\)\]/  \1/p' $(ZOO) >&2; \
	       echo "There is no model called $(MODEL). The names are listed above; a file ends in .onnx, .pkl or .pth." >&2; exit 1; } ;; \
	esac

# mypy runs beside the tests, on one CPU. What it found is shown at the end, where it is seen.
test: style .cache/terraform/installed
	@$(BIN)/mypy >.cache/mypy.txt 2>&1 & mypy=$$!; \
	  $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -rs -m "not slow"; tests=$$?; \
	  wait $$mypy; types=$$?; cat .cache/mypy.txt; test $$tests = 0 && test $$types = 0

lint: style
	$(BIN)/mypy

style: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## make test-slow   the tests that take minutes or root
test-slow: $(VENV)/dev
	$(BIN)/pytest -m slow

## make beam-test   the pipeline on a Beam runner, in an environment of its own
beam-test: .cache/beam/installed
	.cache/beam/bin/python -m pytest tests/test_beam.py

## make bench       measure, and write benchmarks/results
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks

## make bucket      a bucket to develop against: drop a photo into a folder
bucket: $(VENV)/dev
	$(BIN)/python -m devtools.bucket

## make image-test  build the image and run it under a memory limit (root, Debian)
image-test: $(VENV)/dev
	$(BIN)/pytest tests/test_image_build.py

$(VENV)/bench: requirements-bench.txt $(VENV)/dev
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

# checkov and the stub provider pin old versions of what the service uses, so they have an environment of their own.
.cache/terraform/installed: requirements-terraform.txt
	@mkdir -p $(@D)
	@if command -v terraform >/dev/null; then $(PYTHON) -m venv $(@D) && \
	  $(@D)/bin/pip install --quiet --disable-pip-version-check -r $<; fi
	@touch $@

# apache-beam needs older versions of what the service uses.
.cache/beam/installed: requirements-beam.txt constraints-beam.txt requirements-dev.txt
	@$(PYTHON) -m venv $(@D) && $(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints-beam.txt \
	  -r requirements-beam.txt $$(grep -E '^(pytest|hypothesis)==' requirements-dev.txt)
	@touch $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

# pip is the last file that venv creates: an environment that could not be finished is created again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or later. Name another with PYTHON=, such as PYTHON=python3.12."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/serving: requirements.txt | $(BIN)/pip
	@echo "Installing what serving needs into $(VENV). This takes a minute, and is done once."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/convert: requirements-convert.txt $(VENV)/serving
	@echo "Installing what converting a model needs into $(VENV). This takes a minute, and is done once."
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-convert.txt
	@touch $@

$(VENV)/dev: requirements.txt requirements-convert.txt requirements-parquet.txt requirements-dev.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
