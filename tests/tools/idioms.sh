# Ways in which shells and programs use an attribute, the same on every sysfs: run on a real and on an emulated one.
#
#   idioms.sh FILE         FILE: a bus's drivers_autoprobe, which takes 0 and 1; beside it drivers_probe and drivers/
#
# Prints what came out, without names and numbers that differ from one bus to the other.
set -u
file=$1
dir=$(dirname "$file")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

try() {
    printf '%s\n' "-- $1"
    shift
    bash -c "$*" > out 2>&1
    status=$?
    sed -e "s|$dir|DIR|g" -e "s|$scratch|HERE|g" -e 's/^bash: line [0-9]*: //' -e 's/sed[A-Za-z0-9]\{6\}/sedXXXXXX/' out
    printf 'status %s, value %s\n' $status "$(cat "$file")"
}
export file dir

try 'echo' 'echo 0 > $file'
try 'echo -n' 'echo -n 1 > $file'
try 'append' 'echo 0 >> $file'
try 'printf' 'printf "1\n" > $file'
try 'tee' 'echo 0 | tee $file'
try 'tee -a' 'echo 1 | tee -a $file'
try 'dd' 'echo 0 | dd of=$file status=none'
try 'dd bs=1' 'printf 1 | dd of=$file bs=1 status=none'
try 'dd notrunc seek' 'printf 0 | dd of=$file bs=1 seek=3 conv=notrunc status=none'
try 'empty write' ': > $file'
try 'truncate' 'truncate -s 0 $file; truncate -s 10000 $file; stat -c %s $file'
try 'read' 'read line < $file; echo "[$line]"'
try 'head' 'head -c 1 $file; echo; tail -c 2 $file'
try 'wc' 'wc -c < $file'
try 'dd if' 'dd if=$file bs=1 skip=1 status=none | od -c'
try 'stat' 'stat -c "%a %s %b %o %F %U %h" $file $dir/drivers_probe; stat -c "%a %s %F" $dir'
try 'ls -l' 'ls -l $file $dir/drivers_probe | cut -d" " -f1-5'
try 'readdir types' 'find $dir -maxdepth 1 -name "drivers*" -printf "%f %y %m\n" | sort'
try 'find links' 'find $dir/devices -type f -o -type d | grep -c .'
try 'grep -r' 'grep -r "^[01]$" $dir --include=drivers_autoprobe'
try 'cp out' 'cp $file copy; cat copy; stat -c %s copy'
try 'cp -a out' 'cp -a $file copy2; stat -c "%a %s" copy2'
try 'cp over' 'echo 1 > one; cp one $file'
try 'cp -a over' 'cp -a one $file'
try 'rsync over' 'rsync -a --inplace one $file 2>&1 | head -n 1'
try 'rsync out' 'rsync -a $file rsynced; stat -c %s rsynced'
try 'tar' 'tar -cf tar -C $dir drivers_autoprobe; tar -xOf tar | tr -d "\0"'
try 'mv over' 'echo 0 > zero; mv zero $file'
try 'sed -i' 'sed -i s/1/0/ $file'
try 'install' 'install -m 644 one $file'
try 'write-only' 'cat $dir/drivers_probe'
try 'unknown device' 'echo nosuchdevice > $dir/drivers_probe'
try 'touch new' 'touch $dir/new'
try 'redirect to new' 'echo 1 > $dir/new'
try 'noclobber' 'set -C; echo 1 > $file'
try 'mkdir' 'mkdir $dir/new'
try 'rm' 'rm -f $file'
try 'rmdir' 'rmdir $dir/devices'
try 'ln' 'ln $file $dir/new'
try 'ln -s' 'ln -s x $dir/new'
try 'mkfifo' 'mkfifo $dir/new'
try 'mv away' 'mv $file $dir/new'
try 'chmod' 'chmod 600 $file; stat -c %a $file; chmod 644 $file; stat -c %a $file'
try 'as a directory' 'cat $file/x; ls $file/'
try 'a directory as a file' 'cat $dir; echo 1 > $dir'
try 'access' 'for a in r w x; do test -$a $file; echo $a $?; done'
try 'python' 'python3 -c "
import errno, mmap, os, select, sys
f = os.open(sys.argv[1], os.O_RDWR)
def attempt(name, call):
    try:
        print(name, call())
    except OSError as error:
        print(name, errno.errorcode[error.errno])
attempt(\"seek end\", lambda: os.lseek(f, 0, os.SEEK_END))
attempt(\"pwrite\", lambda: os.pwrite(f, b\"1\", 7))
attempt(\"pread\", lambda: os.pread(f, 10, 0))
attempt(\"pread 1\", lambda: os.pread(f, 10, 1))
attempt(\"long write\", lambda: os.write(f, b\"1\" * 5000))
attempt(\"no write\", lambda: os.write(f, b\"\"))
attempt(\"fsync\", lambda: os.fsync(f))
attempt(\"fdatasync\", lambda: os.fdatasync(f))
attempt(\"ftruncate\", lambda: os.ftruncate(f, 0))
attempt(\"mmap\", lambda: bool(mmap.mmap(f, 4096, mmap.MAP_SHARED, mmap.PROT_READ)))
attempt(\"utime\", lambda: os.utime(sys.argv[1]))
attempt(\"listxattr\", lambda: os.listxattr(sys.argv[1]))
attempt(\"create\", lambda: os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
attempt(\"directory\", lambda: os.open(sys.argv[1], os.O_DIRECTORY))
g = os.open(sys.argv[1], os.O_RDONLY)
p = select.poll()
p.register(g, select.POLLIN | select.POLLPRI)
print(\"poll\", p.poll(0)[0][1])
os.read(g, 10)
print(\"poll after read\", p.poll(0)[0][1])
print(\"eof\", os.read(g, 10))
os.lseek(g, 0, 0)
print(\"again\", os.read(g, 1), os.read(g, 10))
" $file'
try 'inotify' '
    { inotifywait -q -t 10 -e modify $file > events & } 2> /dev/null
    until grep -q inotify /proc/$!/fdinfo/* 2> /dev/null; do :; done
    echo 1 > $file
    wait $!
    cut -d" " -f2 events'
