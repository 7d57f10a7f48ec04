# Source this in the scripts here: it runs the calling script inside `apfs exec`, and shows each command before running it.
#
#   . prelude.sh [APFS-EXEC-OPTION...]       without options of its own: the host of example.toml

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -z "${APFS_MOUNT-}" ]; then
    PATH=$here/../../.venv/bin:$PATH:/usr/sbin:/sbin
    export PATH LC_ALL=C
    case " $* " in *" --scenario "*) ;; *) set -- --scenario "$here/example.toml" "$@" ;; esac
    exec apfs exec "$@" -- bash "$here/$(basename -- "$0")"
fi

# Type a command: show it, run it, show its status unless that is 0.
t() {
    printf '$ %s\n' "$*"
    "$@" 2>&1 || printf '[status %s]\n' $?
}
M=669d9b23-fe1b-4ecb-be08-a2fabca99b71
U1=11111111-2222-4333-8444-555555555555
U2=22222222-2222-4333-8444-555555555555
# Wait for a condition, for at most ten seconds.
wait_for() {
    for _ in $(seq 200); do
        if eval "$1"; then return 0; fi
        read -rt 0.05 <> <(:) || :
    done
    printf 'never: %s\n' "$1"
    exit 1
}
