# make demo: from a fresh clone to text.   make test: the tests.   Both set up .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow fuzz soak emulators bench compare lint clean

demo: $(VENV)/.compiler
	$(BIN)/inferc run smollm2 -p "The capital of France is" -n 48

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

# The text functions under libFuzzer; what it finds lies in fuzz-corpus. Needs clang.
FUZZ_SECONDS ?= 60

fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

# 24 sessions at once for ten minutes, then the fuzzers of saved sessions and of what is opened, each for as long.
SOAK_SECONDS ?= 600
soak: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_soak.py --soak-seconds $(SOAK_SECONDS) $(ARGS)

# The second word, a package, unless there is the program of the first: others' packages of Node and Rust bar Debian's.
unless_here = $(if $(shell command -v $(word 1,$1)),,$(word 2,$1))

# What runs the tests of targets for other machines, of fuzzers and of other languages: those are skipped, with a reason,
# where it is missing.
emulators:
	apt-get install -y --no-install-recommends qemu-user clang libclang-rt-dev cmake chromium golang-go \
	  $(foreach p,node=nodejs npm=npm rustc=rustc cargo=cargo,$(call unless_here,$(subst =, ,$p)))

# Models and peers of `make bench`; docs/benchmarks.md says where they come from. A peer is NAME=PATH of a llama-bench.
comma := ,
MODELS ?= $(error say which models: make bench MODELS="a.gguf b.gguf=pp512,tg64" PEERS="llama.cpp=PATH")
PEERS ?=
BENCH_THREADS ?= 2
BENCH_ROUNDS ?= 3
BENCH_OUT ?= benchmarks/results/$(shell date -u +%Y-%m-%d)

bench: $(VENV)/.bench
	$(BIN)/inferc bench $(MODELS) --backends c $(addprefix --peer ,$(PEERS)) -t $(BENCH_THREADS) -r $(BENCH_ROUNDS) \
	  -o md,csv,json,html --output $(BENCH_OUT)-bench $(ARGS)
	$(BIN)/python benchmarks/start.py $(foreach m,$(MODELS),$(firstword $(subst =, ,$(m)))) --json $(BENCH_OUT)-start.json
	$(BIN)/python benchmarks/kernels.py --threads $(subst $(comma), ,$(BENCH_THREADS)) --out $(BENCH_OUT)-kernels

# The README's comparison: `make compare LLAMA_CPP=DIR IK_LLAMA_CPP=DIR`, folders of their built programs.
COMPARED ?= benchmarks/models
LLAMA_CPP ?= $(error say where llama-bench and llama-quantize are: make compare LLAMA_CPP=DIR IK_LLAMA_CPP=DIR)

compare: $(VENV)/.bench
	$(BIN)/python benchmarks/compare.py --models $(COMPARED) --llama-cpp $(LLAMA_CPP) \
	  $(if $(IK_LLAMA_CPP),--ik-llama-cpp $(IK_LLAMA_CPP)) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p inferc.compiler -p inferc.ir -p inferc.backends -p inferc.runtime

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "inferc needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24.1"

# One stamp per extra: the install is repeated only when pyproject.toml changes.
$(VENV)/.compiler $(VENV)/.test $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) build dist
