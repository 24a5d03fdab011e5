# The front door. Every target installs what it lacks; nothing is left running.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
XTASK := cargo run --quiet --locked --package xtask --
SCRIPTS = $(shell git ls-files '*.sh' .ci/run)

.PHONY: help demo quick test check attack chaos fuzz sanity e2e selinux bench images clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## two pods speak mutual TLS with their identities, on this machine, without a cluster
	@tests/setup.sh build
	@examples/demo.sh

quick: ## clippy and unit tests of one crate (CRATE=agent), or of those with uncommitted changes
	@tests/setup.sh build
	@$(XTASK) quick $(CRATE)

test: ## all suites; the last line is "N passed, N failed, N skipped"
	@tests/setup.sh build play go disk
	@$(XTASK) test

# What fails fast comes first.
check: ## formatting, spelling, words, scripts, dependencies, the mounter's budget, clippy, rustdoc
	@tests/setup.sh build check
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	target/tools-words/typos
	shellcheck -x $(SCRIPTS)
	target/tools/cargo-deny --locked check --allow license-exception-not-encountered bans licenses sources
	target/tools/cargo-deny --locked --manifest-path fuzz/Cargo.toml --config deny.toml check --allow license-not-encountered --allow unnecessary-skip bans licenses sources
	$(XTASK) words
	$(XTASK) budget
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

attack: ## attack the agent as one hostile pod, measure what is left for other pods (root; SECONDS=…, ATTACKS="…")
	@tests/setup.sh build
	@$(XTASK) attack --seconds $(or $(SECONDS),8) $(ATTACKS)

chaos: ## kill agent and mounter a thousand times under a simulated kubelet, count what is lost (root; KILLS=…, SEED=…)
	@tests/setup.sh build
	@$(XTASK) chaos --kills $(or $(KILLS),1000) $(if $(SEED),--seed $(SEED))

fuzz: ## run each fuzz target for a minute (SECONDS=…, TARGETS="…"); some need root
	@tests/setup.sh build fuzz
	@$(XTASK) fuzz --seconds $(or $(SECONDS),60) $(TARGETS)

sanity: ## csi-sanity against agent and mounter (root)
	@tests/setup.sh build go
	@$(XTASK) test sanity

e2e: ## a real two-node Kubernetes cluster on this machine (root)
	@tests/setup.sh build go
	@$(XTASK) test e2e

selinux: ## mounter, agent and pods under an enforcing SELinux policy, in a qemu guest (no root)
	@tests/setup.sh build guest
	@$(XTASK) selinux

bench: ## measure speed and size into bench/ (root); some rows with ROWS=N1,N3
	@tests/setup.sh build disk
	@$(XTASK) bench $(if $(ROWS),--rows $(ROWS))

images: ## static binaries and OCI archives in target/images
	@tests/setup.sh build
	@$(XTASK) images

clean: ## remove what was built here; tools and cluster binaries in ~/.cache/seamount stay
	cargo clean
