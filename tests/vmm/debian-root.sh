#!/bin/sh
# Makes a program of another release of Debian runnable here, without touching the system's packages.
#
#   tests/vmm/debian-root.sh DIRECTORY "SUITE..." "PACKAGE..." PROGRAM...
#
# The packages of the first suite and all that they depend on are unpacked below DIRECTORY/root; DIRECTORY/PROGRAM runs
# a program with the libraries there.
set -eu

directory=$1 suites=$2 packages=$3
shift 3
# From where this machine gets its own packages.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "debian-root: this machine has no packages of Debian: run apt-get update" >&2; exit 2; }

mkdir -p "$directory/root" "$directory/apt/lists/partial" "$directory/apt/archives/partial"
cd "$directory/apt"
: > status
for suite in $suites; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
done > sources.list
# No configuration of the system's: it may name other releases, and run programs afterwards.
cat > apt.conf << END
#clear DPkg;
#clear APT::Update;
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Dir::State::lists "$PWD/lists";
Dir::State::status "$PWD/status";
Dir::State::extended_states "$PWD/extended_states";
Dir::Cache::archives "$PWD/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "$PWD/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
END
apt-get -c "$PWD/apt.conf" -q update
# shellcheck disable=SC2086 -- a list of words
apt-get -c "$PWD/apt.conf" -q -y --download-only --target-release "${suites%% *}" install $packages
for archive in archives/*.deb; do
    dpkg-deb --extract "$archive" "$directory/root"
done

# The dynamic linker of that release starts the programs: it and the C library belong together.
linker=$(find "$directory/root" -name 'ld-linux*.so.*' | head -n 1)
libraries=$(find "$directory/root" -name 'libc.so.6' -exec dirname {} ';' | head -n 1)
for program; do
    file=$(find "$directory/root/usr/bin" "$directory/root/usr/sbin" -name "$program")
    cat > "$directory/$program" << END
#!/bin/sh
exec '$linker' --library-path '$libraries' '$file' "\$@"
END
    chmod +x "$directory/$program"
done
rm -r "$directory/apt"
