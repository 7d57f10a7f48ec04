#!/bin/sh
# Makes programs of another release of Debian runnable here, without touching the system's packages.
#
#   tests/vmm/debian-root.sh DIRECTORY "SUITE..." "PACKAGE..." PROGRAM...
#
# DIRECTORY/PROGRAM runs a program of the packages with the libraries of its release.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
directory=$1 suites=$2 packages=$3
shift 3
# shellcheck disable=SC2046,SC2086 -- lists of words
"$here/../../mount-examples/fetch-debian.sh" "$directory" "$suites" "$(dpkg --print-architecture)" \
    $(printf '+%s ' $packages)

# The dynamic linker of that release starts the programs: it and the C library belong together.
linker=$(find "$directory/root" -name 'ld-linux*.so.*' | head -n 1)
libraries=$(find "$directory/root" -name 'libc.so.6' -exec dirname {} ';' | head -n 1)
for program; do
    file=$(find "$directory/root/usr/bin" "$directory/root/usr/sbin" -name "$program")
    cat > "$directory/$program.$$" << END
#!/bin/sh
exec '$linker' --library-path '$libraries' '$file' "\$@"
END
    chmod +x "$directory/$program.$$"
    mv "$directory/$program.$$" "$directory/$program"
done
