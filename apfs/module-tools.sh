#!/bin/sh
# Stands for modprobe, rmmod, insmod and kmod inside `apfs exec`: acts on the emulated host, never on the real kernel.
tool=${0##*/}
console=/dev/apfs/ctl/console

name_of() { basename "$1" | sed 's/\.ko.*$//; s/-/_/g'; }

is_emulated() { case $1 in vfio_ap|mdev|vfio|zcrypt|zcrypt_cex4|ap) return 0 ;; *) return 1 ;; esac; }

quiet=
remove=
while :; do
    case ${1-} in
    -r|--remove) remove=1 ;;
    -q|--quiet|--silent|-s) quiet=1 ;;
    -C|-d|-S|--config|--dirname|--set-version) shift ;;
    --) shift; break ;;
    -*) ;;
    *) break ;;
    esac
    shift
done

fail() { [ -n "$quiet" ] || printf '%s: %s\n' "$tool" "$1" >&2; exit 1; }

load() {
    name=$(name_of "$1")
    if is_emulated "$name"; then
        [ "$name" = ap ] || printf 'modprobe %s' "$name" 2>/dev/null > "$console" || fail "ERROR: could not insert '$name'"
    elif [ ! -d "/sys/module/$name" ]; then
        fail "FATAL: Module $1 not found in directory /lib/modules/$(uname -r)"
    fi
}

unload() {
    name=$(name_of "$1")
    if ! is_emulated "$name"; then fail "ERROR: Module $1 is not on the emulated host"; fi
    [ -d "/sys/module/$name" ] || { [ -n "$remove" ] && exit 0; fail "ERROR: Module $name is not currently loaded"; }
    printf 'rmmod %s' "$name" 2>/dev/null > "$console" || fail "ERROR: Module $name is in use"
}

case $tool in
modprobe)
    [ $# -gt 0 ] || fail "ERROR: missing parameters. See -h."
    if [ -n "$remove" ]; then for module; do unload "$module"; done; else load "$1"; fi ;;
insmod) [ $# -gt 0 ] || fail "ERROR: missing filename."; load "$1" ;;
rmmod) [ $# -gt 0 ] || fail "ERROR: missing module name."; for module; do unload "$module"; done ;;
*) exec "/run/apfs/bin/real-$tool" "$@" ;;
esac
