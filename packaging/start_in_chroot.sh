#!/usr/bin/env bash
# Starts a wheel in a fresh chroot of a Debian release: packaging/start_in_chroot.sh SUITE WHEEL
# Needs root, debootstrap, and the mirror that apt uses here (MIRROR names another). Not part of CI.
# bullseye has the glibc of Ubuntu 20.04 (2.31) and Python 3.9, which is too old: there, Python is built from bookworm's sources.
set -euo pipefail
suite=$1
wheel=$2

mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)}
script=/usr/share/debootstrap/scripts/$suite
test -e "$script" || script=/usr/share/debootstrap/scripts/sid
root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf --one-file-system "$root"' EXIT

debootstrap --variant=minbase --include=python3 "$suite" "$root" "$mirror" "$script" >"$root.log" 2>&1 ||
    { tail "$root.log"; exit 1; }
rm "$root.log"
if ! chroot "$root" python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "deb-src $mirror bookworm main" >>"$root/etc/apt/sources.list"
    chroot "$root" sh -euc '
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -qq --no-install-recommends gcc make libc6-dev libffi-dev libssl-dev zlib1g-dev
        cd /usr/src
        apt-get source -qq --download-only python3.11
        tar -xf python3.11_*.orig.tar.?z
        cd Python-3.11.*
        ./configure -q --disable-test-modules
        make -s -j "$(nproc)"
        make -s install
    ' >"$root/build.log" 2>&1 || { tail "$root/build.log"; exit 1; }
fi

python3 -m pip install --quiet --root-user-action ignore --no-deps --no-index --target "$root/opt/gateway" "$wheel"
# As a user without rights, and with nothing writable.
chroot --userspec 65534:65534 "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/opt/gateway PYTHONDONTWRITEBYTECODE=1 sh -euc '
    ldd --version | head -n 1
    python3 --version
    python3 -W error -m sgl_model_gateway demo --workers 2 --exit
    python3 -W error -m sgl_model_gateway doctor --port 0 --prometheus-port 0
'
