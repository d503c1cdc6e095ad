#!/usr/bin/env bash
# Fuzzes a target: fuzz/run.sh safetensors_reader|adapter_parser [SECONDS]. Needs cargo-fuzz and a nightly toolchain.
# New inputs go to fuzz/work/TARGET, and what breaks a promise to fuzz/artifacts/TARGET. The bounds are what no input may
# pass: 256 MiB in one allocation, 1 GiB in all, 10 seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 seconds=${2:-3600}
work=fuzz/work/$target
mkdir -p "$work"
# Real adapters to start from, as long as they are short.
seeds=fuzz/work/seeds
mkdir -p "$seeds"
find tests/golden/adapter tests/hostile -name '*.safetensors' -size -16k | while read -r file; do
  cp "$file" "$seeds/$(basename "$(dirname "$file")")-$(basename "$file")"
done
# One thread of work at a time: libFuzzer counts what a single one does.
export RAYON_NUM_THREADS=1
exec cargo +nightly fuzz run "$target" "$work" "fuzz/corpus/$target" "$seeds" -- -dict=fuzz/adapter.dict \
  -max_len=16384 -timeout=10 -malloc_limit_mb=256 -rss_limit_mb=1024 -max_total_time="$seconds" -print_final_stats=1
