#!/bin/sh
# Fetches lszcrypt and chzcrypt as Debian builds them for s390x, with their libraries, for use with qemu-s390x-static.
#
#   mount-examples/tools/fetch-s390x.sh DIR [SUITE]
#
# The file tree of the packages of SUITE, by default bookworm, is then DIR/root. The machine does not change: apt is
# given a configuration, lists and a cache of its own in DIR, of which only the mirror and keys are the machine's, and
# nothing is installed. Needs neither root nor a foreign architecture. Does nothing, in no time, when it is done.
set -eu

packages="s390-tools libc6 libgcc-s1"
programs="lszcrypt chzcrypt"

say() { printf '%s\n' "fetch-s390x: $*" >&2; }
die() { say "$*"; exit 1; }

[ $# = 1 ] || [ $# = 2 ] || die "usage: fetch-s390x.sh DIR [SUITE]"
suite=${2:-bookworm}
mkdir -p "$1"
dir=$(CDPATH='' cd -- "$1" && pwd)

wanted="$suite $packages"
ready() { [ "$(cat "$dir/done" 2>/dev/null)" = "$wanted" ] && [ -x "$dir/root/sbin/lszcrypt" ]; }
ready && exit 0
exec 9> "$dir/lock"
flock 9
ready && exit 0

# Starts anew, also after an attempt that was interrupted.
rm -rf "$dir/done" "$dir/root" "$dir/apt"
mkdir -p "$dir/root" "$dir/apt/state/lists/partial" "$dir/apt/cache/archives/partial" "$dir/apt/debs"
log=$dir/apt/log
: > "$dir/apt/status"

# The mirrors that the machine uses. One that does not have the suite does no harm.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] && option=" signed-by=$keyring" || option=
# shellcheck disable=SC2016 -- apt replaces these
mirrors=$(apt-get indextargets --no-release-info --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n -e '/security/d' -e 's/^main //p' | sort -u)
for mirror in $mirrors; do
    printf 'deb [arch=s390x%s] %s %s main\n' "$option" "$mirror" "$suite"
done > "$dir/apt/sources.list"
[ -s "$dir/apt/sources.list" ] || die "apt has no source with a component main on this machine"

cat > "$dir/apt/apt.conf" << END
APT::Architecture "s390x";
#clear APT::Architectures;
APT::Architectures { "s390x"; };
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "2";
Dir::State "$dir/apt/state";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
END

explain() {
    cat "$log" >&2
    die "cannot get $1 of Debian $suite for s390x from the package archive:" $mirrors
}
say "fetching $packages of Debian $suite for s390x"
# A failing mirror is only a failure if the packages cannot be had.
apt-get -c "$dir/apt/apt.conf" -q update > "$log" 2>&1 || :
for package in $packages; do
    (cd "$dir/apt/debs" && apt-get -c "$dir/apt/apt.conf" -q download "$package:s390x") >> "$log" 2>&1 || explain "$package"
done
for package in "$dir"/apt/debs/*.deb; do
    dpkg-deb --extract "$package" "$dir/root"
done
# Since trixie no package has the links that every Debian system has.
for name in lib sbin; do
    [ -e "$dir/root/$name" ] || ln -s "usr/$name" "$dir/root/$name"
done
for name in $programs; do
    [ -x "$dir/root/sbin/$name" ] || die "the package s390-tools of Debian $suite has no $name"
done
rm -rf "$dir/apt/state" "$dir/apt/cache" "$dir/apt/debs"
printf '%s\n' "$wanted" > "$dir/done"
