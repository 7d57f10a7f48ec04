#!/bin/sh
# Downloads and unpacks Debian packages of any release and architecture, without changing the machine.
#
#   mount-examples/fetch-debian.sh DIR SUITE ARCHITECTURE PACKAGE...
#
# The file tree is then in DIR/root. @NAME downloads the packages that NAME depends on, for example the kernel behind
# linux-image-s390x; +NAME downloads NAME with all dependencies, down to the C library. SUITE can be
# "bookworm-backports bookworm": packages come from the first, their dependencies from both. apt uses its own
# configuration, lists and cache in DIR, and only the mirrors and keys of the machine; nothing is installed. It needs
# neither root nor a foreign architecture, and returns at once if everything is already there.
set -eu

say() { printf '%s\n' "fetch-debian: $*" >&2; }
die() { say "$*"; exit 1; }

[ $# -ge 4 ] || die "usage: fetch-debian.sh DIR SUITE ARCHITECTURE PACKAGE..."
mkdir -p "$1"
dir=$(CDPATH='' cd -- "$1" && pwd) suite=$2 architecture=$3
shift 3

wanted="$suite $architecture $*"
ready() { [ "$(cat "$dir/done" 2>/dev/null)" = "$wanted" ]; }
ready && exit 0
exec 9> "$dir/lock"
flock 9
ready && exit 0

# Start from scratch, even after an interrupted attempt.
rm -rf "$dir/done" "$dir/root" "$dir/apt"
mkdir -p "$dir/root" "$dir/apt/state/lists/partial" "$dir/apt/cache" "$dir/apt/debs/partial"
log=$dir/apt/log
: > "$dir/apt/status"

# The mirrors that the machine uses. A mirror without the suite does no harm.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] && option=" signed-by=$keyring" || option=
# shellcheck disable=SC2016 -- apt replaces these
mirrors=$(apt-get indextargets --no-release-info --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    sed -n -e '/security/d' -e 's/^main //p' | sort -u)
for mirror in $mirrors; do
    for name in $suite; do
        printf 'deb [arch=%s%s] %s %s main\n' "$architecture" "$option" "$mirror" "$name"
    done
done > "$dir/apt/sources.list"
[ -s "$dir/apt/sources.list" ] || die "apt has no source with a component main on this machine"

cat > "$dir/apt/apt.conf" << END
APT::Architecture "$architecture";
#clear APT::Architectures;
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
#clear DPkg;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "2";
Dir::State "$dir/apt/state";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
Dir::Cache::archives "$dir/apt/debs";
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
END

explain() {
    cat "$log" >&2
    die "cannot get $1 of Debian $suite for $architecture from the package archive:" $mirrors
}
say "fetching $* of Debian $suite for $architecture"
# A failing mirror matters only if the packages are not available elsewhere.
apt-get -c "$dir/apt/apt.conf" -q update > "$log" 2>&1 || :
for name in "$@"; do
    case $name in
    +*)
        apt-get -c "$dir/apt/apt.conf" -q -y --download-only --target-release "${suite%% *}" install "${name#+}" \
            >> "$log" 2>&1 || explain "${name#+}"
        continue
        ;;
    @*) packages=$(apt-cache -c "$dir/apt/apt.conf" depends "${name#@}" 2>> "$log" | sed -n 's/^ *Depends: //p') ;;
    *) packages=$name ;;
    esac
    [ -n "$packages" ] || explain "$name"
    for package in $packages; do
        (cd "$dir/apt/debs" && apt-get -c "$dir/apt/apt.conf" -q download "$package:$architecture") >> "$log" 2>&1 ||
            explain "$package"
    done
done
for package in "$dir"/apt/debs/*.deb; do
    dpkg-deb --extract "$package" "$dir/root"
done
rm -rf "$dir/apt/state" "$dir/apt/cache" "$dir/apt/debs"
printf '%s\n' "$wanted" > "$dir/done"
