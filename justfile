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

# What the programs of the images are made of: a bill of materials of each (CycloneDX), in target/sbom
sbom:
    #!/usr/bin/env bash
    set -euo pipefail
    version=0.5.9 root=.cache/tools
    [ "$("$root/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null)" = "cargo-cyclonedx-cyclonedx $version" ] ||
      cargo install --quiet --locked --root "$root" "cargo-cyclonedx@$version"
    "$root/bin/cargo-cyclonedx" cyclonedx --quiet --target x86_64-unknown-linux-musl --describe binaries --no-build-deps \
      --format json --spec-version 1.5
    mkdir -p target/sbom
    # One for each program of the workspace, beside its Cargo.toml. As in the images, no folder of this machine.
    for program in operator/soloist-operator worker/soloist-worker; do
      sed "s|$PWD|/soloist|g" "${program}_bin.cdx.json" > "target/sbom/${program#*/}.cdx.json"
    done
    git ls-files --others -- '*_bin.cdx.json' | xargs rm
    ls -l target/sbom

# Rewrites what is generated: the CRD, the plain install manifest, the chart's README
generate:
    cargo run --quiet --package soloist-operator -- crd > manifests/crd.yaml
    charts/generate
