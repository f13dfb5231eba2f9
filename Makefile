# The daily verbs. `make demo` and `make test` need only make and Python >= 3.11 on a new machine.
#
#   make install          .venv with every distribution of this repository, editable
#   make demo             a first answer from the model that travels with the repository
#   make test             the fast tests; P=plugins/cli for one folder, ARGS="-k name -x" for pytest
#   make test-all         every test, the slow ones too
#   make check            formatting, lint, types, one-way imports
#   make check-native     the CPU kernels' tests under address and undefined-behaviour sanitizers
#   make check-avx512     the CPU kernels' tests over the AVX-512 code, emulated (needs SIMDe's headers)
#   make fuzz SECONDS=600 damaged weight files at random, a share of the time for each reader
#   make docs             write docs/models.md, run every sample of the documentation, check links
#   make bench            measure speed on this machine, beside other engines; QUICK=1 in 5 minutes
#   make clean            remove what the above have made

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
P      ?=
ARGS   ?=
# Test processes. Each runs torch on one thread: tiny models gain nothing from more.
WORKERS ?= 2
SECONDS ?= 600

PROJECTS := $(wildcard core/pyproject.toml arch_*/pyproject.toml arch_*/*/pyproject.toml \
	plugins/*/pyproject.toml quant_plugins/*/pyproject.toml mcp/*/pyproject.toml \
	tests/testkit/pyproject.toml)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: install demo test test-all check check-native check-avx512 fuzz docs bench clean

install: $(STAMP)

# torch comes first and alone, so that nothing else can choose another build of it; setuptools is
# there before the editable installs, which then need no isolated build environments. torch is
# compiled to byte code at once, since every start waits for it; the rest when first imported.
$(STAMP): $(PROJECTS) constraints.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say where it is: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "setuptools>=77" wheel
	$(INSTALL) torch
	$(INSTALL) --no-compile --no-build-isolation \
		$(foreach project,$(PROJECTS),-e $(dir $(project))) -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/tramontane run --stats "What is the capital of France?"
	@echo 'To talk on: $(BIN)/tramontane run'

test: $(STAMP)
	$(PYTEST) -m "not slow and not peer and not gpu" $(ARGS) $(P)

test-all: $(STAMP)
	$(PYTEST) $(ARGS) $(P)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

SANITIZED := plugins/kernels_cpu/build/sanitized
check-native: $(STAMP)
	cd plugins/kernels_cpu && TRAMONTANE_NATIVE_SANITIZE=1 $(abspath $(BIN))/python setup.py -q \
		build_ext --build-lib build/sanitized --build-temp build/sanitized/objects
	TRAMONTANE_CPU_LIBRARY=$$(echo $(abspath $(SANITIZED))/tramontane_kernels_cpu/_native*.so) \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 $(BIN)/pytest plugins/kernels_cpu \
		-q -x -p no:cacheprovider -k "not instruction_sets and not memory_twice" $(ARGS)

# No processor with AVX-512 is needed: SIMDe (libsimde-dev, simde) computes what its instructions do.
EMULATED := plugins/kernels_cpu/build/emulated
check-avx512: $(STAMP)
	@echo '#include <simde/x86/avx512.h>' | $(CXX) -mavx2 -fsyntax-only -x c++ - 2>/dev/null || \
		{ echo "SIMDe's headers are not found; install libsimde-dev (Debian) or simde (Fedora, brew)"; exit 1; }
	cd plugins/kernels_cpu && TRAMONTANE_NATIVE_EMULATE_AVX512=1 $(abspath $(BIN))/python setup.py -q \
		build_ext --build-lib build/emulated --build-temp build/emulated/objects
	for isa in avx512 avx512bf16; do \
		TRAMONTANE_CPU_LIBRARY=$$(echo $(abspath $(EMULATED))/tramontane_kernels_cpu/_native*.so) \
		TRAMONTANE_CPU_ISA=$$isa OMP_NUM_THREADS=2 $(BIN)/pytest plugins/kernels_cpu -q \
		-p no:cacheprovider -k "$$(test $$isa = avx512 && echo 'not instruction_sets' || \
		echo 'plain or narrow or experts')" $(ARGS) || exit 1; done

fuzz: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --seconds $(SECONDS) $(ARGS)

docs: $(STAMP)
	$(BIN)/python docs/write_models.py
	$(PYTEST) -n 0 docs README.md CONTRIBUTING.md $(ARGS)

bench: $(STAMP)
	$(INSTALL) -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
