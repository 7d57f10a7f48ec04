#!/bin/sh
# Takes the place of modprobe, rmmod, insmod and kmod inside `apfs exec`: acts on the emulated host, never on the real kernel.
tool=${0##*/}
console=/dev/apfs/ctl/console
modules=/dev/apfs/ctl/sandbox/modules

if [ "$tool" = kmod ]; then
    case ${1-} in modprobe|insmod|rmmod|lsmod|modinfo|depmod) tool=$1; shift ;; esac
fi
name_of() { basename "$1" | sed 's/\.ko.*$//; s/-/_/g'; }

is_emulated() { case $1 in vfio_ap|mdev|vfio|vfio_iommu_type1|zcrypt|zcrypt_cex4|ap) return 0 ;; *) return 1 ;; esac; }

list_modules() {
    echo 'Module                  Size  Used by'
    while read -r name size count users _; do
        [ "$users" != - ] || users=''
        printf '%-19s %8d  %d%s\n' "$name" "$size" "$count" "${users:+ ${users%,}}"
    done < "$modules"
}

# What the file of a module would tell: a field and its value a line.
describe() {
    place=s390/crypto depends='' license='GPL v2'
    case $1 in
    vfio) place=vfio ;;
    vfio_iommu_type1) place=vfio depends=vfio ;;
    mdev) place=vfio/mdev ;;
    vfio_ap) depends=mdev,vfio ;;
    zcrypt) license=GPL ;;
    zcrypt_cex4) license=GPL depends=zcrypt ;;
    esac
    if [ "$1" = ap ]; then
        printf 'name ap\nfilename (builtin)\nlicense GPL\n'
    else
        printf 'filename /lib/modules/%s/kernel/drivers/%s/%s.ko\n' "$(uname -r)" "$place" "$1"
        [ ! -r "/sys/module/$1/version" ] || printf 'version %s\n' "$(cat "/sys/module/$1/version")"
        printf 'license %s\ndepends %s\nintree Y\nname %s\n' "$license" "$depends" "$1"
    fi
    for parameter in "/sys/module/$1/parameters"/*; do
        [ ! -e "$parameter" ] || printf 'parm %s\n' "${parameter##*/}"
    done
}

# Tells about modules if all of them are emulated and the options are simple ones; otherwise returns.
tell() {
    wanted=''
    while :; do
        case ${1-} in
        -F|--field) wanted=${2-}; shift $(($# < 2 ? 1 : 2)) ;;
        --field=*) wanted=${1#*=}; shift ;;
        -F?*) wanted=${1#-F}; shift ;;
        -n|--filename) wanted=filename; shift ;;
        -l|--license) wanted=license; shift ;;
        -p|--parameters) wanted=parm; shift ;;
        -*) return ;;
        *) break ;;
        esac
    done
    [ $# -gt 0 ] || return
    for module; do is_emulated "$(name_of "$module")" || return; done
    for module; do
        describe "$(name_of "$module")" | while read -r field value; do
            if [ "$field" = "$wanted" ]; then echo "$value"; fi
            if [ -z "$wanted" ]; then printf '%-16s%s\n' "$field:" "$value"; fi
        done
    done
    exit 0
}

# The others only read. What they tell of the real machine is told by the real program, by the name that it has.
case $tool in
modprobe|insmod|rmmod) ;;
lsmod) [ $# -gt 0 ] || { list_modules; exit; } ;;
kmod) [ "$*" != list ] || { list_modules; exit; } ;;
modinfo) tell "$@" ;;
esac
case $tool in modprobe|insmod|rmmod) ;; *) exec "/run/apfs/bin/real/$tool" "$@" ;; esac

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
