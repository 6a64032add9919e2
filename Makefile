# Everything runs in a virtual environment of its own, .venv, made and built at the first command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# lucidrains' code and k-diffusion, and what of theirs the tests call, but for what would bring a torch of its own
PEERS := denoising-diffusion-pytorch accelerate einops ema-pytorch k-diffusion psutil
SOURCES := setup.py pyproject.toml constraints.txt $(wildcard kernels/cpu/*)

.PHONY: demo test test-slow aarch64 sanitize test-peers bench rehearse lint clean
.DEFAULT_GOAL := test

# torch first: the build compiles against it, and an isolated build would download another copy
$(VENV)/ready: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt "setuptools>=77" wheel ninja numpy torch
	FASTDDPM_FORCE_CPP=1 $(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[test]"
	$(BIN)/pip install -q -c constraints.txt --no-deps $(PEERS)
	touch $@

demo: $(VENV)/ready
	$(BIN)/fastddpm train --data digits --out runs/digits --overwrite

# two processes; a file stays in one, and the longest go first (tests/conftest.py)
test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

# the C++ kernels for another architecture, under qemu; and under sanitizers and a fuzzer (SECONDS= how long that one runs)
aarch64: $(VENV)/ready
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_aarch64.py

sanitize: $(VENV)/ready
	FASTDDPM_FUZZ_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -m "slow or not slow" tests/test_sanitizers.py

# diffusers' own tests on fastddpm's schedulers: make test-peers CHECKOUT=a checkout of diffusers
test-peers: $(VENV)/ready
	$(BIN)/python tests/peer_tests.py $(CHECKOUT)

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

# the stages for a GPU (benchmarks/gpu.sh) without one, in an environment like that of the machine they are for
rehearse:
	benchmarks/rehearse.sh $(or $(REHEARSAL),build/rehearsal)

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info fastddpm/_C*.so fastddpm/_build_note.txt
