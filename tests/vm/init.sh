#!/bin/sh
# The first process of the virtual machine: makes it a usable one, runs /command in the checkout, and switches off.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
# Timeouts of tests are for a real processor. And apfs is not installed, so pytest does not find its plugin.
export APFS_SLOWER=30 PYTEST_PLUGINS=apfs.testing.plugin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t tmpfs none /tmp
mount -t tmpfs none /run
for module in /fuse.ko*; do
    [ ! -e "$module" ] || insmod "$module"
done
ip link set lo up
# What Debian makes when it configures packages.
ln -sf mawk /usr/bin/awk
ldconfig
chmod u+s "$(command -v fusermount3)"
cp /usr/share/base-passwd/passwd.master /etc/passwd
{
    cat /usr/share/base-passwd/group.master
    printf '%s:x:%s:\n' input 996 sgx 995 kvm 994 render 993 # those that udev's rules name
} > /etc/group
printf '127.0.0.1 localhost\n' > /etc/hosts
mkdir -p /usr/local/bin
printf '#!/bin/sh\nexec python3 -m apfs "$@"\n' > /usr/local/bin/apfs
chmod +x /usr/local/bin/apfs
# The root of a RAM disk cannot be pivoted, as bwrap does it; that of a bind mount above it can.
mkdir -p /new
mount --rbind / /new
cd /new || exit
mount --move . /
# As if installed: tests have a PYTHONPATH of their own.
printf '%s\n' /apfs /packages > /usr/lib/python3/dist-packages/installed.pth
cat > /run/job << 'END'
cd /apfs
sh /command
echo "apfs-vm: $?"
echo o > /proc/sysrq-trigger
sleep 60
END
exec chroot . /bin/sh /run/job
