#!/bin/sh
# Runs a command in a container of the image apfs, as the image's ordinary user, with the minimum privileges for
# `apfs exec`. With podman, it also works rootless.
#
#   mount-examples/containers/run.sh [OPTION_OF_RUN...] IMAGE COMMAND...
#   ENGINE=docker mount-examples/containers/run.sh --volume "$PWD:/tests:ro" apfs apfs exec -- /tests/my-test.sh
set -eu

engine=${ENGINE:-$(command -v podman || echo docker)}
case $engine in
*podman*) proc=unmask=ALL ;;
*) proc=systempaths=unconfined ;;
esac
# fusermount3 needs the device and the capability; bubblewrap mounts a new /proc in a user namespace, which the kernel
# allows only if no part of the old one is masked; AppArmor's profiles for containers forbid mounts.
# shellcheck disable=SC2086 -- a command and its options
exec $engine run --rm --device /dev/fuse --cap-add SYS_ADMIN \
    --security-opt "$proc" --security-opt apparmor=unconfined "$@"
