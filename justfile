# What a maintainer runs. `just` lists the recipes.

[private]
default:
    @just --list

# Everything CI runs
check:
    .ci/run

# Format, lint and unit tests: the quick round
quick:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace

# The whole system, shown: a real cluster, a burst of tasks, the scale-out drawn
demo *args:
    cargo demo {{ args }}

# Every test of the project
e2e *args:
    cargo e2e {{ args }}

# How long a burst of 500 messages takes to become 50 replicas: a line of JSON for each burst
burst:
    cargo e2e --filter a_burst_of_500

# A real Kubernetes cluster on this machine (up, down, status, env)
cluster *args:
    cargo cluster {{ args }}

# Licences, sources, banned crates and security advisories of the dependencies
deny:
    cargo deny check

# Rewrites what is generated: the CRD, the plain install manifest, the chart's README
generate:
    cargo run --quiet --package soloist-operator -- crd > manifests/crd.yaml
    charts/generate
