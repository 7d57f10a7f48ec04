#!/bin/sh
# Stands for modprobe, rmmod, insmod and kmod inside `apfs exec`: acts on the emulated host, never on the real kernel.
tool=${0##*/}
console=/dev/apfs/ctl/console

if [ "$tool" = kmod ]; then
    case ${1-} in modprobe|insmod|rmmod|lsmod|modinfo|depmod) tool=$1; shift ;; esac
fi
# The others only read. The real program goes by the name that it has.
case $tool in modprobe|insmod|rmmod) ;; *) exec "/run/apfs/bin/real/$tool" "$@" ;; esac

name_of() { basename "$1" | sed 's/\.ko.*$//; s/-/_/g'; }

is_emulated() { case $1 in vfio_ap|mdev|vfio|zcrypt|zcrypt_cex4|ap) return 0 ;; *) return 1 ;; esac; }

# Why the console refused: it tells the errno only, and the shell not even that.
reason() { tail -n 1 /dev/apfs/ctl/journal | sed -n 's/.*"why": "\(.*\)"}$/\1/p'; }

quiet='' remove='' dry='' all=''

fail() { [ -n "$quiet" ] || printf '%s: %s\n' "$tool" "$1" >&2; exit 1; }

while :; do
    case ${1-} in
    --) shift; break ;;
    -r|--remove) remove=1 ;;
    -q|--quiet|--silent|-s) quiet=1 ;;
    -n|--dry-run|--show) dry=1 ;;
    -a|--all) all=1 ;;
    -C|-d|-S|-w|--config|--dirname|--set-version|--wait) [ $# -lt 2 ] || shift ;;
    -b|-f|-i|-v|--use-blacklist|--force|--ignore-install|--ignore-remove|--verbose|--syslog|--*=*) ;;
    -V|--version) echo "$tool of apfs, for the modules of the emulated host"; exit 0 ;;
    -[!-]?*) # several letters: the first, then the rest
        rest=${1#??}
        first=${1%"$rest"}
        shift
        set -- "$first" "-$rest" "$@"
        continue ;;
    -*) fail "ERROR: option $1 is not known for an emulated host" ;;
    *) break ;;
    esac
    shift
done

load() {
    name=$(name_of "$1")
    if is_emulated "$name"; then
        [ "$name" = ap ] || [ -n "$dry" ] || printf 'modprobe %s' "$name" 2>/dev/null > "$console" ||
            fail "ERROR: could not insert '$name': $(reason)"
    elif [ ! -d "/sys/module/$name" ]; then
        fail "FATAL: Module $1 not found in directory /lib/modules/$(uname -r)"
    fi
}

unload() {
    name=$(name_of "$1")
    if ! is_emulated "$name"; then fail "ERROR: Module $1 is not on the emulated host"; fi
    [ -d "/sys/module/$name" ] || { [ -n "$remove" ] && exit 0; fail "ERROR: Module $name is not currently loaded"; }
    [ -z "$dry" ] || return 0
    printf 'rmmod %s' "$name" 2>/dev/null > "$console" && return
    [ "$(cat "/sys/module/$name/refcnt")" = 0 ] || fail "ERROR: Module $name is in use"
    fail "ERROR: could not remove '$name': $(reason)"
}

case $tool in
modprobe)
    [ $# -gt 0 ] || fail "ERROR: missing parameters. See -h."
    if [ -n "$remove" ]; then
        for module; do unload "$module"; done
    elif [ -n "$all" ]; then
        for module; do load "$module"; done
    else
        load "$1" # what follows are parameters of the module
    fi ;;
insmod) [ $# -gt 0 ] || fail "ERROR: missing filename."; load "$1" ;;
rmmod) [ $# -gt 0 ] || fail "ERROR: missing module name."; for module; do unload "$module"; done ;;
esac
