#!/bin/sh
# Creates an s390x guest: Debian's kernel, and an initrd of two files that counts on its console.
#
#   mount-examples/libvirt/make-guest.sh DIR [SUITE]
#
# Use DIR/kernel and DIR/initrd as <kernel> and <initrd> of a domain. They come from Debian's packages, by default those
# of bookworm, a download of 35 MB. Needs cpio, but not root. Returns at once if the files already exist.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: make-guest.sh DIR [SUITE]" >&2; exit 1; }
"$here/../fetch-debian.sh" "$1" "${2:-bookworm}" s390x @linux-image-s390x busybox-static
cd "$1"
# Several may call this at once, and one that finds a kernel starts it.
exec 9> lock
flock 9
if [ ! -e kernel ] || [ done -nt kernel ]; then
    rm -rf tree
    mkdir -p tree/bin tree/dev
    cp root/bin/busybox tree/bin/
    cat > tree/init << 'END'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
n=0
while :; do
    n=$((n + 1))
    echo "count $n"
    /bin/busybox sleep 0.2
done
END
    chmod +x tree/init
    (cd tree && printf '%s\n' bin bin/busybox dev init | cpio --quiet --create --format newc --owner 0:0) | gzip -1 > initrd
    rm -rf tree root/lib/modules
    cp root/boot/vmlinuz-* kernel.new
    mv kernel.new kernel
fi
