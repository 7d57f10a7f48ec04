#!/bin/sh
# Runs a part of the tests in a virtual machine: another architecture or another kernel than this machine's.
#
#   tests/vm/run.sh ARCHITECTURE [SUITE [KERNEL]] [-- COMMAND...]
#
# ARCHITECTURE is Debian's name: amd64, arm64, s390x; or it is uml. SUITE is the release whose C library, Python, libfuse and
# tools the machine has, by default bookworm; KERNEL that of its kernel, by default the same. COMMAND runs in the checkout,
# instead of inside.sh beside this file.
#
# QEMU emulates the processor, so minutes pass where the same takes seconds here. With uml, user-mode Linux, the kernel is a
# program of this machine, which must be an amd64 with a C library as new as that of KERNEL: there is one processor, and
# most things take two or three times as long as here. None of this is part of the suite. Everything is made of Debian's
# packages by fetch-debian.sh, and neither root nor a foreign architecture is needed; pyfuse3 is compiled here, by a cross
# compiler. The file tree is the machine's initial RAM disk, to which this checkout is appended: there is no disk, and no
# network. $APFS_VM_CACHE keeps the parts, or else ${XDG_CACHE_HOME:-~/.cache}/apfs/vm, some 600 MB for a machine, and the
# log of its last run. $APFS_VM_SECONDS is how long it may run, $APFS_VM_CPUS how many processors QEMU has.
set -eu

say() { printf '%s\n' "vm: $*" >&2; }
die() { say "$*"; exit 2; }

usage='usage: run.sh amd64|arm64|s390x|uml [SUITE [KERNEL]] [-- COMMAND...]'
architecture=${1-}
uml=
case $architecture in
uml) architecture=amd64 uml=uml- machine=x86_64 ;;
amd64) machine='x86_64 -machine q35 -cpu max' console=ttyS0 from=qemu-system-x86 ;;
arm64) machine='aarch64 -machine virt -cpu cortex-a57' console=ttyAMA0 from=qemu-system-arm ;;
s390x) machine='s390x -machine s390-ccw-virtio -cpu max' console=ttysclp0 from=qemu-system-misc ;;
*) die "$usage" ;;
esac
shift
suite=bookworm
case ${1---} in --) ;; *) suite=$1; shift ;; esac
kernel=$suite
case ${1---} in --) ;; *) kernel=$1; shift ;; esac
[ $# = 0 ] || { [ "$1" = -- ] && shift; } || die "$usage"
triplet=${machine%% *}-linux-gnu
[ -n "$uml" ] || command -v "qemu-system-${machine%% *}" > /dev/null ||
    die "qemu-system-${machine%% *} is missing: install the package $from"
command -v cpio > /dev/null || die "cpio is missing: install the package of that name"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache=${APFS_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/apfs/vm}
place=$cache/$architecture-$suite
fetch=$root/mount-examples/fetch-debian.sh
mkdir -p "$cache"

# The kernel, and the file tree of the packages.
package=@linux-image-$architecture
[ -z "$uml" ] || package=user-mode-linux
boot=$cache/$uml$architecture-kernel-$kernel
"$fetch" "$boot" "$kernel" "$architecture" "$package"
"$fetch" "$place" "$suite" "$architecture" +python3 +python3-dev +gcc +libc6-dev +libfuse3-dev +fuse3 +bubblewrap +kmod \
    +mount +util-linux +coreutils +bash +dash +udev +procps +mawk +sed +grep +findutils +login +passwd +base-files +hostname \
    +iproute2 +socat +libc-bin +mdevctl +diffutils +base-passwd
image=$(find "$boot/root" -name 'vmlinuz-*' -o -name linux.uml)
# Debian 13's kernel has it built in.
fuse=$(find "$boot/root" -name 'fuse.ko*')

# Python packages: all but pyfuse3 are the same everywhere.
pip="python3 -m pip --quiet --disable-pip-version-check"
if [ ! -d "$cache/packages" ]; then
    say "fetching Python packages"
    rm -rf "$cache/packages.part" "$cache/pyfuse3"
    $pip download --dest "$cache/pyfuse3" --no-deps --no-binary pyfuse3 'pyfuse3>=3.5'
    $pip install --target "$cache/packages.part" --only-binary :all: --platform any --python-version 3.11 \
        click rich tomlkit trio pytest pytest-trio pytest-xdist hypothesis
    mv "$cache/packages.part" "$cache/packages"
fi
python=$(find "$place/root/usr/include" -maxdepth 1 -name 'python3.*')
if [ ! -f "$place/pyfuse3/__init__.so" ]; then
    say "compiling pyfuse3 for $architecture"
    compiler=gcc libraries=
    if [ "$(dpkg --print-architecture)" != "$architecture" ]; then
        "$fetch" "$cache/cross-$architecture" bookworm "$(dpkg --print-architecture)" "+gcc-$(echo "$triplet" | tr _ -)"
        compiler=$cache/cross-$architecture/root/usr/bin/$triplet-gcc
        libraries=$(find "$cache/cross-$architecture/root/usr/lib" -maxdepth 1 -name '*-linux-gnu' | tr '\n' ':')
    fi
    mkdir -p "$place/pyfuse3"
    source=$(find "$cache/pyfuse3" -name '*.tar.gz')
    tar --extract --gzip --directory "$place/pyfuse3" --strip-components 3 --wildcards --file "$source" '*/src/pyfuse3/*'
    version=$(basename "$source" .tar.gz)
    # What pyfuse3's own setup.py says, and where things are for the other machine.
    LD_LIBRARY_PATH=$libraries "$compiler" --sysroot="$place/root" -B"$place/root/usr/lib/$triplet" \
        -shared -fPIC -w -O1 -D_FILE_OFFSET_BITS=64 -DFUSE_USE_VERSION=32 "-DPYFUSE3_VERSION=\"${version#pyfuse3-}\"" \
        -I"$python" -I"$place/root/usr/include/fuse3" -L"$place/root/usr/lib/$triplet" \
        -o "$place/pyfuse3/__init__.part" "$place/pyfuse3/__init__.c" \
        "$(find "$place/root/lib/" "$place/root/usr/lib" -name 'libfuse3.so.[0-9]' | head -n 1)"
    mv "$place/pyfuse3/__init__.part" "$place/pyfuse3/__init__.so"
fi

# Bytecode, which Debian makes when it configures packages: in the machine each module takes a second. By content, because
# times are not kept; only where the Python here is the one there.
precompile() {
    [ "$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')" = "$(basename "$python")" ] || return 0
    tree=$1
    shift
    (cd "$tree" && python3 -m compileall -qf --invalidation-mode unchecked-hash -p / "$@") > "$place/compileall.log" || :
}

# The RAM disk: the tree, without what nobody needs there, and then what changes.
archive() { (cd "$1" && find . -mindepth 1 | cpio --quiet --create --format=newc --owner=0:0 --reproducible); }
if [ -z "$(find "$place" -maxdepth 1 -name tree.cpio -newer "$place/done")" ]; then
    say "making the file tree"
    rm -rf "$place/stage"
    cp --archive --link "$place/root" "$place/stage"
    (
        cd "$place/stage"
        rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/i18n usr/lib/python3*/test usr/lib/python3*/config-* \
            usr/share/perl* usr/lib/*/perl* usr/bin/*-lto-dump* usr/lib/gcc/*/*/lto1 usr/libexec/gcc/*/*/lto1
    )
    mkdir -p "$place/stage/packages/pyfuse3"
    cp --recursive "$cache/packages/." "$place/stage/packages"
    cp "$place"/pyfuse3/*.so "$place"/pyfuse3/*.py "$place/stage/packages/pyfuse3"
    precompile "$place/stage" "usr/lib/$(basename "$python")" packages
    archive "$place/stage" > "$place/tree.part"
    rm -rf "$place/stage"
    mv "$place/tree.part" "$place/tree.cpio"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/top/apfs"
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=-) |
    tar --extract --directory "$work/top/apfs"
precompile "$work/top" apfs/apfs
install -m 755 "$root/tests/vm/init.sh" "$work/top/init"
[ -z "$fuse" ] || cp "$fuse" "$work/top/"
printf '%s\n' "${*:-sh tests/vm/inside.sh}" > "$work/top/command"
{ cat "$place/tree.cpio" && archive "$work/top"; } > "$work/disk"

log=$place-$uml$kernel.log
limit=${APFS_VM_SECONDS:-7200}
say "starting $uml$architecture, $suite, $(basename "$image"), for at most $limit seconds"
started=$(date +%s)
# What protects a real processor costs an emulated one much: with a kernel page table, its TLB is emptied at each system
# call. Nor is its clock to be checked against one that is slower to read.
options='mitigations=off nokaslr tsc=reliable'
run() {
    if [ -n "$uml" ]; then
        TMPDIR=/dev/shm timeout --foreground --kill-after=10 "$limit" "$image" mem=3072M initrd="$work/disk" \
            con=null con0=fd:0,fd:1 console=tty0 quiet panic=-1
    else
        # shellcheck disable=SC2086 # a list of words
        timeout --foreground --kill-after=10 "$limit" qemu-system-$machine -smp "${APFS_VM_CPUS:-2}" -m 3072 -nographic \
            -no-reboot -nic none -kernel "$image" -initrd "$work/disk" -append "console=$console quiet panic=-1 $options"
    fi
}
run < /dev/null | tee "$log" || :
say "it took $(($(date +%s) - started)) seconds; all that it said is in $log"
grep -q '^apfs-vm: 0' "$log"
