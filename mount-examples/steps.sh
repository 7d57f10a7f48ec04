# Source this in bash scripts that demonstrate something step by step on several hosts. Mount each host on a directory
# in $work, and put background processes into the array `daemons`; all are unmounted and ended at exit.
#
#   . steps.sh

work=$(mktemp -d)
daemons=()

clean_up() {
    status=$?
    trap - EXIT
    for daemon in "${daemons[@]}"; do
        kill "$daemon" 2>/dev/null || :
        wait "$daemon" || :
    done
    for host in "$work"/*; do
        if grep -q " $host fuse.apfs " /proc/self/mounts; then apfs umount --lazy "$host"; fi
    done
    rm -rf "$work"
    [ $status = 0 ] || printf '\n%s: FAILED with status %s\n' "$(basename "$0" .sh)" "$status" >&2
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step() { printf '\n== %s\n' "$*"; }
# Shows a command as typed, and runs it.
do_() { printf '   $ %s\n' "$*"; eval "$*" 2>&1 | sed -e '/./!d' -e 's/^/   /'; return "${PIPESTATUS[0]}"; }
expect() { [ "$1" = "$2" ] || { printf 'expected "%s", found "%s"\n' "$2" "$1" >&2; exit 1; }; }
