#!/usr/bin/env bash
# install.sh DIR: etcd and kube-apiserver in DIR/bin, the one from Debian's package, the other built from Debian's source
# package. Debian 12 is the last release whose source package has the whole of Kubernetes; later ones have kubectl only.
set -euo pipefail
suite=bookworm
mkdir -p "$1/bin" "$1/src" "$1"/apt/etc/{apt.conf.d,sources.list.d,preferences.d} "$1"/apt/{lists,archives}/partial
dir=$(cd "$1" && pwd)

# Package lists of its own: the machine's may have no source packages, or be of another release.
cat > "$dir/apt/apt.conf" << END
Dir::Etc "$dir/apt/etc";
Dir::State::lists "$dir/apt/lists";
Dir::Cache "$dir/apt";
APT::Sandbox::User "root";
END
for kind in deb deb-src; do
    echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
done > "$dir/apt/etc/sources.list"
own_apt() { APT_CONFIG=$dir/apt/apt.conf apt-get --quiet --quiet "$@"; }
own_apt update
cd "$dir/src"
own_apt download etcd-server golang-1.19-go golang-1.19-src
for package in ./*.deb; do dpkg -x "$package" "$dir/debian"; done
cp "$dir/debian/usr/bin/etcd" "$dir/bin/"

# What the build needs of the machine.
missing=()
for tool in make gcc rsync jq dpkg-source; do command -v $tool > /dev/null || missing+=("${tool/dpkg-source/dpkg-dev}"); done
if [ ${#missing[@]} -gt 0 ]; then apt-get install --yes --quiet --no-install-recommends "${missing[@]}"; fi

rm -rf kubernetes-*/
own_apt source kubernetes
cd kubernetes-*/
# The package's links point from /usr/lib to /usr/share.
goroot=$dir/debian/usr/lib/go-1.19
find "$goroot" -maxdepth 1 -lname '../../share/*' | while read -r link; do
    ln -sfn "$dir/debian/usr/share/go-1.19/$(basename "$link")" "$link"
done
mkdir -p .go/src/k8s.io
ln -sfn ../../.. .go/src/k8s.io/kubernetes
# Without a repository, the version is what a file says.
cat > version.sh << END
KUBE_GIT_COMMIT=unknown
KUBE_GIT_TREE_STATE=archive
KUBE_GIT_VERSION=v1.20.2
KUBE_GIT_MAJOR=1
KUBE_GIT_MINOR=20
END
# No module is downloaded: the source package has them all.
env -u GOFLAGS PATH="$goroot/bin:$PATH" GOROOT="$goroot" GOPATH="$PWD/.go" GOCACHE="$dir/cache" GOTOOLCHAIN=local GOPROXY=off \
    CGO_ENABLED=0 HOME="$dir" KUBE_GIT_VERSION_FILE="$PWD/version.sh" make WHAT=cmd/kube-apiserver
cp _output/bin/kube-apiserver "$dir/bin/"
cd "$dir"
rm -rf src cache debian apt
"$dir/bin/kube-apiserver" --version
"$dir/bin/etcd" --version
