#!/bin/sh
# Runs the suite on another release of Debian: its CPython, libfuse and tools, on this machine's kernel and processor.
#
#   tests/vm/chroot.sh SUITE [ARGUMENT...]
#
# SUITE is a name such as trixie, and arguments go to pytest. The file tree is made of Debian's packages by mmdebstrap and
# kept below $APFS_VM_CACHE, or else ${XDG_CACHE_HOME:-~/.cache}/apfs/vm, where tests/run.sh of a copy of this checkout
# installs what the tests need. That takes some 4 GB, and minutes once. Needs root: so do tests of what only root may do.
# All mounts are in a namespace that ends with the run.
set -eu

say() { printf '%s\n' "chroot: $*" >&2; }
die() { say "$*"; exit 2; }

case ${1-} in
'' | -* | */*) die "usage: chroot.sh SUITE [ARGUMENT...]" ;;
esac
suite=$1
shift
[ "$(id -u)" = 0 ] || die "only root can make and enter the file tree of another system"
command -v mmdebstrap > /dev/null || die "mmdebstrap is missing: install the package of that name"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache=${APFS_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/apfs/vm}
tree=$cache/$suite
mkdir -p "$cache"
exec 9> "$tree.lock"
flock --nonblock 9 || die "another run is using $tree"
if [ ! -d "$tree" ]; then
    say "making $tree"
    rm -rf "$tree.part"
    # This machine's apt knows whether its mirror may be a copy of an older day.
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,procps --dpkgopt=force-unsafe-io \
        --aptopt="$(apt-config dump Acquire::Check-Valid-Until)" --aptopt="$(apt-config dump Acquire::Check-Date)" \
        "$suite" "$tree.part" >&2
    mv "$tree.part" "$tree"
fi

# This checkout as it is, also what is not committed, at a place that no test uses; of the copy before it only what was
# installed into it.
mkdir -p "$tree/checkout"
find "$tree/checkout" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache -exec rm -rf {} +
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=-) |
    tar --extract --no-same-owner --directory "$tree/checkout"

# unshare itself ignores these signals; with it ends all that runs in its namespaces.
child=
trap '[ -z "$child" ] || kill -KILL "$child"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
unshare --mount --pid --fork --kill-child sh "$root/tests/vm/enter.sh" "$tree" tests/run.sh "$@" <&0 &
child=$!
wait "$child" && status=0 || status=$?
child=
exit "$status"
