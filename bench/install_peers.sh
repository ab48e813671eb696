#!/usr/bin/env bash
# Installs the gateways that compare.py measures besides ours, each into its own virtual environment under
# bench/.venvs (or $BENCH_VENVS). nginx and haproxy come from the system's packages: apt-get install nginx-light haproxy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venvs=${BENCH_VENVS:-$PWD/.venvs}
python=${PYTHON:-python3}

for peer in sglang-router==0.3.2 smg==1.13.0 vllm-router==0.1.17; do
    name=${peer%%==*}
    venv=$venvs/$name
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "$peer"
    "$venv/bin/python" -m pip list 2>/dev/null | grep -i "^$name " # its version; an error when it is not installed
done
