#!/bin/sh
# Installs what is missing, then runs the whole test suite on all processors; arguments go to pytest.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# The tools that the tests run inside `apfs exec`, as Debian has them.
packages=$(grep -v '^#' "$root/tests/tools/packages.txt")
# The browser that looks at reports. Ubuntu has it as a snap only, and the tests are skipped there.
! grep -qx ID=debian /etc/os-release || packages="$packages chromium chromium-driver"
# Headers of Linux for other architectures, unless they are there: Debian 13 has those of all in linux-libc-dev.
for headers in amd64:x86_64-linux-gnu arm64:aarch64-linux-gnu armhf:arm-linux-gnueabihf riscv64:riscv64-linux-gnu \
    s390x:s390x-linux-gnu; do
    [ -d "/usr/include/${headers#*:}/asm" ] || packages="$packages linux-libc-dev-${headers%:*}-cross"
done
# What libvirt needs of udev has a package of its own since Debian 13, and sshd, which a test unpacks, a library.
case $(. /etc/os-release && echo "$ID ${VERSION_ID-}") in
'debian 12' | ubuntu*) ;;
*) packages="$packages libvirt-daemon-driver-nodedev libwtmpdb0" ;;
esac
# shellcheck disable=SC2086 -- a list of words
"$root/mount-examples/setup.sh" mount,test,lint $packages
cd "$root"
# In the order of collection: the folders that take longest are not last.
exec .venv/bin/python -m pytest --numprocesses=auto --no-loadscope-reorder "$@"
