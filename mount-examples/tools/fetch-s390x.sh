#!/bin/sh
# Downloads Debian's s390x builds of lszcrypt and chzcrypt, with their libraries, for use with qemu-s390x-static.
#
#   mount-examples/tools/fetch-s390x.sh DIR [SUITE]
#
# The file tree of the packages of SUITE, by default bookworm, is then in DIR/root. The machine is not changed, and
# neither root nor a foreign architecture is needed. Returns at once if everything is already there.
set -eu

say() { printf '%s\n' "fetch-s390x: $*" >&2; }
die() { say "$*"; exit 1; }

[ $# = 1 ] || [ $# = 2 ] || die "usage: fetch-s390x.sh DIR [SUITE]"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
suite=${2:-bookworm}
"$here/../fetch-debian.sh" "$1" "$suite" s390x s390-tools libc6 libgcc-s1
# Since trixie no package has the links that every Debian system has.
for name in lib sbin; do
    [ -e "$1/root/$name" ] || ln -sf "usr/$name" "$1/root/$name"
done
for name in lszcrypt chzcrypt; do
    [ -x "$1/root/sbin/$name" ] || die "the package s390-tools of Debian $suite has no $name"
done
