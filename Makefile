# Every target sets up .venv itself.
#
#   make demo    a guest on a vCPU, five devices and the daemon, each in a process of its own; ends by itself
#   make demo-shell  the same, with this terminal as its serial port
#   make demo-arm  an arm64 guest on two vCPUs, two devices and the daemon, each in a process of its own
#   make test    the tests
#   make compiled  a wheel of irqchipd whose core is compiled, in .venv/compiled
#   make test-compiled  the tests of the daemon, on that
#   make test-long  the slow tests: docker-compose.yml in an engine of its own, 10,000 ticks, the whole demo,
#                the KVM adapter on a standard KVM in QEMU, and kernels that boot: Linux, Xen, SeaBIOS, memtest86+
#   make check   lint, types, the contract, and whether generated files are current
#   make proto   generate the stubs from the contract, and the SDK's blocking half from its asyncio half
#   make baseline  at a release: record the contract that `make check` compares later versions with
#   make bench   the benchmarks, of the sources and, where there is a C compiler, of the compiled core
#   make stall   how much one hostile client or guest slows down others, in six minutes
#   make ticks   500 VMs with a timer each, for a minute
#   make fuzz    a million almost valid messages over both edges and rings; set MESSAGES and SEED to choose others
#   make explore compare with this machine's /dev/kvm for five minutes, on new random programs
#   make explore-standard  the same with a standard KVM in QEMU, whatever KVM this machine has
#   make explore-arm  compare with a real arm64 KVM in QEMU for five minutes, on new random programs; set SECONDS,
#                OPERATIONS, SEED and PROCESSES to choose others

VENV := .venv
BIN := $(VENV)/bin
COMPILED := $(VENV)/compiled
HAS_COMPILER := $(shell $(CC) --version >/dev/null 2>&1 && echo yes)
BASELINE := proto/baseline.binpb

# The newest Python from 3.11 on. A name on PATH may not work, because version managers install shims.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.DELETE_ON_ERROR:
.PHONY: help demo demo-arm demo-shell test test-long compiled test-compiled check proto baseline bench stall ticks fuzz explore explore-standard explore-arm clean

help:
	@sed -n '/^VENV/q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/installed
	$(BIN)/python -m examples.demo

demo-arm: $(VENV)/installed
	$(BIN)/python -m examples.demo.arm64

demo-shell: $(VENV)/installed
	@$(BIN)/python -m examples.demo.shell

test: $(VENV)/test $(VENV)/axe
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: $(VENV)/test $(VENV)/axe
	$(BIN)/python -m pytest -m "long and not boots"
	$(BIN)/python -m pytest -m "long and boots" --numprocesses 2 --dist loadfile

compiled: $(COMPILED)/built

test-compiled: compiled
	$(COMPILED)/bin/irqchipd --version | grep compiled
	$(COMPILED)/bin/python -m pytest -m "not long" --numprocesses 2 --dist loadfile $(addprefix tests/,chips vm observe \
		service client conformance test_builds.py)

check: $(VENV)/check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(BASELINE)
	$(BIN)/python tools/generate.py --check
	$(BIN)/python tools/unasync.py --check

proto: $(VENV)/check
	$(BIN)/python tools/generate.py
	$(BIN)/python tools/unasync.py

baseline: $(VENV)/check
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

bench: $(VENV)/bench $(if $(HAS_COMPILER),compiled)
	$(BIN)/python -m bench $(if $(HAS_COMPILER),--compiled $(COMPILED)/bin/python)

stall: $(VENV)/installed
	$(BIN)/python -m bench.stall

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz $(if $(MESSAGES),--messages $(MESSAGES)) $(if $(SEED),--seed $(SEED))

ticks: $(VENV)/test
	$(BIN)/python -m bench.ticks

explore: $(VENV)/test
	IRQCHIPD_LIVE_SECONDS=300 $(BIN)/python -m pytest -s tests/conformance/test_live_kernel.py

explore-standard: $(VENV)/test
	$(BIN)/python -m tests.nested $(or $(SECONDS),300) $(SEED)

explore-arm: $(VENV)/test
	$(BIN)/python -m tests.conformance.arm $(foreach option,SECONDS OPERATIONS SEED PROCESSES,\
		$(if $($(option)),--$(shell echo $(option) | tr A-Z a-z) $($(option))))

clean:
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "irqchipd needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	IRQCHIPD_PURE=1 $(BIN)/python -m pip install --quiet --editable '.[unicorn,vcd]'
	@touch $@

$(COMPILED)/built: pyproject.toml hatch_build.py $(shell find proto server client -name '*.py')
	@$(CC) --version >/dev/null || { echo "a C compiler is missing: on Debian, apt-get install gcc"; exit 1; }
	test -e $(COMPILED)/bin/python || $(PYTHON) -m venv $(COMPILED)
	$(COMPILED)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	rm -f $(COMPILED)/irqchipd-*.whl
	$(COMPILED)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(COMPILED) .
	$(COMPILED)/bin/python -m pip uninstall --quiet --yes irqchipd
	$(COMPILED)/bin/python -m pip install --quiet --group test $(COMPILED)/irqchipd-*.whl
	@touch $@

$(VENV)/test $(VENV)/check $(VENV)/bench: $(VENV)/%: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group $*
	@touch $@

# axe-core, with which tests/page checks that the page is accessible. Without npm those tests skip.
$(VENV)/axe: $(VENV)/installed
	@if npm install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4.14.1; then touch $@; \
	else echo "npm cannot install axe-core: tests/page does not check that the page is accessible"; fi
