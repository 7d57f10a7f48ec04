#!/bin/sh
# Makes a file tree the root of this mount namespace and runs a command in the checkout that is in it: see chroot.sh.
#
#   enter.sh TREE COMMAND...
set -eu
tree=$1
shift
# As on a machine the root is a mount point: on no other the kernel pivots, as bwrap does it.
mount --rbind "$tree" "$tree"
cd "$tree"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmp tmp
mount -t tmpfs -o mode=755 run run
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs; do
    [ ! -e "$file" ] || [ ! -e ".$file" ] || mount --bind "$file" ".$file"
done
mkdir -p tmp/old
pivot_root . tmp/old
umount --lazy /tmp/old
rmdir /tmp/old
cd /checkout
export HOME=/root LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset TMPDIR
exec "$@"
