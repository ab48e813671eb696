#!/usr/bin/env bash
# What requests pass through most, for `make wheel PGO=1`: an instrumented wheel serves the scenarios of bench/compare.py.
# Writes build/wheel/profile/merged.profdata. Arguments are those of `maturin build`, RUSTFLAGS those of the wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/build/wheel/profile

# Of the release of LLVM that rustc has: others do not read its counts.
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
profdata=
for found in "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata "$(command -v "llvm-profdata-$llvm" || true)"; do
    [ -x "$found" ] && profdata=$found
done
if [ -z "$profdata" ]; then
    echo "PGO=1 needs llvm-profdata $llvm: 'rustup component add llvm-tools', or 'apt-get install llvm-$llvm'" >&2
    exit 1
fi

rm -rf "$folder"
mkdir -p "$folder/counts"
# Not with zig, which cannot link what counts. `maturin build --zig` sets these three; cargo names symbols by them, and
# counts are looked up by symbol.
env CARGO_TARGET_APPLIES_TO_HOST=false CARGO_UNSTABLE_TARGET_APPLIES_TO_HOST=true \
    __CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS=nightly \
    RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-generate=$folder/counts" \
    maturin build "$@" --compatibility linux --out "$folder/wheel"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet "$folder"/wheel/*.whl
env -u RUSTFLAGS cargo build --quiet --release -p bench-tools

# Counts are written at the end of a process, and those of all gateways are added.
run() {
    "$folder/venv/bin/python" bench/compare.py --only ours --base ours --rounds 1 --secs 2 "$@"
}
run --target "ours=$folder/venv"
run --target "ours=$folder/venv --record $folder/trace.jsonl --access-log $folder/access.log" --scenarios json_small,cache_4k,stream_burst
"$profdata" merge --output "$folder/merged.profdata" "$folder"/counts/*.profraw
rm -f "$folder"/trace.jsonl* "$folder"/access.log*
