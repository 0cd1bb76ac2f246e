# All tasks of this project. Each target installs its own prerequisites: Debian packages (as root), a
# virtual environment, and, once, the binaries of a real Kubernetes.
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
PYTHON := $(VENV)/bin/python
DEMO := imagegate-demo
E2E := imagegate-e2e
# CPU weights of the clusters of these lanes; the others have 100 (tests/e2e/conftest.py).
WEIGHT_timed := 1000
WEIGHT_large := 500
OLDER := v1.34
LIVES := $(or $(SEED),$(shell echo $$RANDOM))
BETA := --feature-gates=MutatingAdmissionPolicy=true \
  --runtime-config=admissionregistration.k8s.io/v1beta1=true

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9.-]+):.*## (.*)/\1\t\2/' | expand -t 12

.PHONY: demo
demo: setup ## start a cluster with Imagegate, and let a node join; the cluster keeps running
	$(PYTHON) -m tests.e2e.demo --name $(DEMO)

.PHONY: demo-down
demo-down: setup ## stop the demo's cluster
	$(PYTHON) -m tests.cluster --name $(DEMO) down

.PHONY: test
test: setup ## all jobs of CI, in parallel (tests/jobs.py); logs in .artifacts
	$(PYTHON) -m tests.jobs

.PHONY: lint
lint: setup ## static checks, and a check that generated files are current
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m imagegate.api.crd --check
	$(PYTHON) deploy/helm/generate.py --check
	shellcheck .ci/run tests/cluster/install-debian.sh

.PHONY: unit
unit: setup binaries ## tests without a cluster (the API's and the chart's start an API server)
	$(PYTHON) -m pytest tests/unit --numprocesses=4 --dist=loadfile --durations=15

.PHONY: kinds
kinds: setup binaries ## imagesFrom with the CRDs of all known kinds, from their projects' Go modules; some minutes
	$(PYTHON) -m pytest tests/unit/chart/test_kinds_on_api_server.py -m "kinds or not kinds" -v

.PHONY: simulate
simulate: setup ## the whole operator in virtual time: a story of each fixed fault, and random lives
	$(PYTHON) -m tests.simulation --story all --seed $(or $(SEED),1) --parallel 2
	$(PYTHON) -m tests.simulation --seed $(LIVES) --seeds 4 --hours 4 --parallel 2

.PHONY: simulate-long
simulate-long: setup ## random lives for HOURS (2); SEED=7 starts with that seed
	$(PYTHON) -m tests.simulation --minutes $$(( $(or $(HOURS),2) * 60 )) $(if $(SEED),--seed $(SEED))

.PHONY: e2e
e2e: binaries-older ## tests on a real cluster; PYTEST_ARGS="-k join --cluster-keep" for a part of them
	$(PYTHON) -m pytest tests/e2e --timeout=900 -v -s --durations=25 $(LANE:%=--lane=%) \
	  --cluster-name=$(E2E)$(LANE:%=-%) --cluster-cpu-weight=$(or $(WEIGHT_$(LANE)),100) \
	  $(PYTEST_ARGS)
	$(PYTHON) -m tests.cluster --name $(E2E)$(LANE:%=-%) check-clean

.PHONY: e2e-older
e2e-older: binaries-older ## on Kubernetes 1.34: no image volumes, no admission policy; a few minutes
	$(PYTHON) -m pytest tests/e2e -m older --timeout=900 -v -s --cluster-name=$(E2E)-older \
	  --cluster-kubernetes=$(OLDER) $(PYTEST_ARGS)
	$(PYTHON) -m tests.cluster --name $(E2E)-older check-clean

.PHONY: e2e-1.34
e2e-1.34: e2e-older ## all e2e tests on Kubernetes 1.34, with v1beta1 of the admission policy enabled
	$(PYTHON) -m pytest tests/e2e --timeout=900 -v -s --cluster-name=$(E2E) \
	  --cluster-kubernetes=$(OLDER) $(BETA:%=--cluster-apiserver-flag=%) $(PYTEST_ARGS)
	$(PYTHON) -m tests.cluster --name $(E2E) check-clean

.PHONY: chaos
chaos: setup binaries ## each fault once; SEED=7 repeats a run, ROUNDS=20: random faults that overlap
	$(PYTHON) -m pytest tests/chaos --timeout=300 -v -s --cluster-name=$(E2E)-chaos \
	  $(if $(SEED),--seed=$(SEED)) $(if $(ROUNDS),--rounds=$(ROUNDS)) $(PYTEST_ARGS)
	$(PYTHON) -m tests.cluster --name $(E2E)-chaos check-clean

.PHONY: scale
scale: setup binaries ## the e2e test of 1,000 simulated nodes, with 5,000 nodes; some minutes
	IMAGEGATE_SCALE_NODES=5000 $(PYTHON) -m pytest tests/e2e -k thousand --timeout=1800 -v -s \
	  --cluster-name=$(E2E) $(PYTEST_ARGS)

.PHONY: bench
bench: setup binaries ## the operator on a real API server, beside a bare client; BENCH_ARGS="--nodes 1000 --images 1"
	$(PYTHON) -m benchmarks.cluster $(BENCH_ARGS)
	$(PYTHON) -m tests.cluster --name imagegate-bench check-clean

.PHONY: bench-memory
bench-memory: setup ## CPU, memory and requests for each node at 1,000 to 100,000 nodes; BENCH_ARGS="--nodes 1000"
	$(PYTHON) -m benchmarks.memory $(BENCH_ARGS)

.PHONY: fuzz
fuzz: setup ## fuzz the parsers of untrusted input for MINUTES (10); SEED=7, PARSER=manifest; `make unit` has a short run
	$(PYTHON) -m tests.unit.fuzz --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) \
	  $(if $(PARSER),--only "$(PARSER)")

.PHONY: sbom
sbom: setup ## write sbom.cdx.json: the Python packages in the operator's image, from the lock
	$(VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --short-PURLs --output-file sbom.cdx.json requirements/runtime.txt

.PHONY: audit
audit: setup ## check the locks against known vulnerabilities; OSV: a folder or zip of OSV records (docs/security.md)
	$(PYTHON) requirements/audit.py --osv "$(OSV)" requirements/runtime.txt requirements/build.txt requirements/dev.txt

.PHONY: binaries
binaries: setup ## Kubernetes, containerd, kwok and helm, built once into the cache
	$(PYTHON) -m tests.cluster build

.PHONY: binaries-older
binaries-older: binaries
	$(PYTHON) -m tests.cluster build --kubernetes=$(OLDER)

.PHONY: setup
setup: $(VENV)/.ready
	tests/cluster/install-debian.sh

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	tests/cluster/install-debian.sh
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: lock
lock: setup ## resolve the dependencies again, and write requirements/
	compile="$(VENV)/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-header --no-annotate"
	$$compile --output-file requirements/runtime.txt pyproject.toml
	$$compile --group build --output-file requirements/build.txt
	$$compile --group dev --output-file requirements/dev.txt pyproject.toml

.PHONY: crds
crds: setup ## write deploy/crds from the models, and the chart's copies of them
	$(PYTHON) -m imagegate.api.crd
	$(PYTHON) deploy/helm/generate.py
