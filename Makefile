# SPDX-License-Identifier: Apache-2.0
# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Build caches live outside the work tree, so that a second clone is warm.

SHELL := /bin/bash
export POSTERN_CACHE ?= $(HOME)/.cache/postern
export CARGO_TARGET_DIR ?= $(POSTERN_CACHE)/target
# dev builds in minutes and serves demo and tests; PROFILE=dist is what ships.
export PROFILE ?= dev

.DEFAULT_GOAL := help
.PHONY: help build demo test lint gvisor fuzz docker-build docker-push helm-template test-k8s prove-images

help: ## what there is
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

build: ## all binaries and first-party filters (PROFILE=dev|release|dist)
	@scripts/setup.sh build
	@scripts/build.sh

demo: ## from nothing to an agent behind its gateway, told step by step
	@scripts/setup.sh demo
	@scripts/build.sh
	@"$(CARGO_TARGET_DIR)/programs/postern" demo

test: ## everything that must pass, with the minutes of each part
	@scripts/setup.sh test
	@scripts/test.sh

lint: ## formatting, lints, licences, duplicates, unused dependencies
	@scripts/setup.sh test
	@scripts/test.sh lint

gvisor: ## builds the pinned runsc into the cache (needs Go, or brings it)
	@scripts/gvisor.sh

test-k8s: ## sandboxes on a real API server and controller, whose pods run (as root; ROUNDS=)
	@scripts/setup.sh test
	@scripts/build.sh
	@scripts/k8s.sh
	@cargo test --locked --workspace --test k8s

bench-policies: ## the policy engine beside the cedar-policy crate alone
	@scripts/setup.sh build
	@scripts/bench/policies.sh

prove-policies: ## random policies and requests decided as Cedar decides them (CASES=)
	@scripts/setup.sh build
	@scripts/prove/policies.sh

fuzz: ## random tokens, heads, documents and identities, longer than `make test` does (CASES=)
	@scripts/setup.sh test
	@PROPTEST_CASES=$${CASES:-20000} cargo test --locked -p postern-gateway --test suite fuzz::

bench-filters: ## what filters cost in the gateway, loaded and in flight
	@scripts/setup.sh build
	@PROFILE=release scripts/build.sh
	@scripts/bench/filters.sh

bench-storage: ## users' files, carried, beside rclone, and how fast events are drained (as root; RCLONE= EVENTS=)
	@scripts/setup.sh test
	@PROFILE=release scripts/build.sh
	@scripts/bench/storage.sh; storage=$$?; scripts/bench/audit.sh && exit $$storage

bench-audit: ## the same of events alone (EVENTS=)
	@scripts/setup.sh test
	@scripts/bench/audit.sh

bench-sandboxes: ## sandboxes through the API beside the bare runtime (as root)
	@scripts/setup.sh build
	@PROFILE=release scripts/build.sh
	@scripts/gvisor.sh
	@scripts/bench/sandboxes.sh

bench-kubernetes: ## what the orchestrator adds to a cluster's own time, beside a bare loop (as root)
	@scripts/setup.sh test
	@PROFILE=release scripts/build.sh
	@scripts/k8s.sh
	@scripts/bench/kubernetes.sh

helm-template: ## renders the chart into manifests/; VALUES=gcp|azure|azure-government|trial prints instead
	@$(if $(VALUES),scripts/chart.sh template $(VALUES),scripts/chart.sh write)

docker-build: ## images, with Docker's engine where one answers, else as OCI layouts (TAG=, ENGINE=docker|none)
	@PROFILE=dist scripts/images.sh build

docker-push: ## pushes what docker-build made (REGISTRY=)
	@scripts/images.sh push "$(REGISTRY)"

prove-images: ## the images as they ship: sizes, digests, and each started from its layout (no engine)
	@scripts/setup.sh images
	@PROFILE=dist scripts/prove/images.sh

prove-arm64: ## the images built for arm64 on this machine, each program started by qemu
	@scripts/setup.sh images
	@PROFILE=dist scripts/prove/arm64.sh

# Not there yet: each of these says so and fails, so that nobody takes silence for success.
bench-%: ## (not there yet)
	@echo "make $@: no such benchmark yet" >&2; exit 1

prove-%: ## a proof that is too long for `make test`: escape (ROUNDS=, LEVELS=, ONLY=), crash (ROUNDS=, LEVELS=), exec, loss, reload, hostile, revocation, upgrade (ROUNDS=)
	@[[ -x scripts/prove/$*.sh ]] || { echo "make $@: no such proof yet" >&2; exit 1; }
	@$(MAKE) --no-print-directory build
	@scripts/prove/$*.sh
