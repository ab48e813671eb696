#!/usr/bin/env bash
# install.sh DIR: a venv in which the real SGLang serves on a CPU, and a tiny random model in DIR/model.
# Several GB where pip's torch is the CUDA build, which runs on a CPU as well.
set -euo pipefail
# Prefill/decode pairs move their cache with Mooncake, which needs two libraries of Debian.
if command -v apt-get > /dev/null && ! ldconfig -p | grep -q librdmacm.so.1; then
    apt-get install --yes --quiet libibverbs1 librdmacm1
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$1
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check "$@"; }
pip torch==2.13.0
# What SGLang lists is for GPUs; requirements.txt is what it imports on a CPU.
pip --no-deps torchvision==0.28.0 sglang==0.5.23
pip -r "$here/requirements.txt"
"$venv/bin/python" "$here/make_model.py" "$venv/model"
