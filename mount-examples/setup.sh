#!/bin/sh
# Installs what apfs needs and what is missing: Debian packages, and the virtual environment .venv of this checkout.
#
#   mount-examples/setup.sh [EXTRA[,EXTRA] [PACKAGE...]]
#
# EXTRA is an extra of pyproject.toml, by default mount; PACKAGE is an additional Debian package.
#
# Run it as root, or as a user with sudo. It returns at once if there is nothing to do.
set -eu

extras=${1:-mount}
[ $# = 0 ] || shift
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv

say() { printf '%s\n' "setup: $*" >&2; }
die() { say "$*"; exit 2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else
        say "cannot run '$*': not root, and sudo is not installed"
        return 1
    fi
}

# pyfuse3 is compiled here, against libfuse 3; `apfs exec` uses bubblewrap.
packages="fuse3 libfuse3-dev pkg-config gcc libc6-dev util-linux mount bubblewrap $*"
# The system's Python, unless it is too old for apfs and a newer one is in PATH: every user can run it.
python=/usr/bin/python3
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -x "$python" ] && ! recent "$python" && recent python3; then
    python=$(command -v python3)
else
    packages="$packages python3 python3-venv python3-dev"
fi

missing=
for package in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    say "installing Debian packages:$missing"
    by_hand="that did not work; root can install them by: apt-get install$missing"
    as_root apt-get update -q >&2 || die "$by_hand"
    # A fresh machine may just be installing its updates.
    # shellcheck disable=SC2086 -- a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -q -y --no-install-recommends $missing >&2 || die "$by_hand"
fi
recent "$python" || die "Python 3.11 or newer is needed, not $("$python" -V)"

# A new environment when the interpreter has changed; another installation when the dependencies have, or an extra is
# wanted that is not there. Extras stay: the tests run a script that wants less than they need themselves.
interpreter=$("$python" -c 'import sys; print(sys.version, sys.executable)' | cksum | tr ' ' -)
project=$(cksum < "$root/pyproject.toml" | tr ' ' -)
done_file=$venv/setup-done
had_interpreter='' had_project='' had_extras=''
[ ! -f "$done_file" ] || read -r had_interpreter had_project had_extras < "$done_file"
if [ "$had_interpreter" != "$interpreter" ]; then
    say "making the virtual environment $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    had_project=''
fi
wanted=$had_extras
for extra in $(printf %s "$extras" | tr , ' '); do
    case ,$wanted, in *,"$extra",*) ;; *) wanted=${wanted:+$wanted,}$extra ;; esac
done
if [ "$had_project $had_extras" != "$project $wanted" ]; then
    say "installing apfs[$wanted] into it"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$wanted]" >&2
    printf '%s\n' "$interpreter $project $wanted" > "$done_file"
fi

# udev makes the device accessible to everybody; machines without udev may not have done that.
if [ -e /dev/fuse ] && ! { [ -r /dev/fuse ] && [ -w /dev/fuse ]; }; then
    say "making /dev/fuse accessible to users"
    as_root chmod 0666 /dev/fuse || die "that did not work; root can do it by: chmod 0666 /dev/fuse"
fi
