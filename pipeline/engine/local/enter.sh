# The first process of the engine's own mount and process namespace: makes the root, enters it,
# becomes the engine. Started by run.py as
#   unshare ... sh enter.sh RUN LAYER ROOT DATA SOCKETS [ENGINE ARGUMENT ...]
# Nothing here reaches the host: every mount is private and ends with the last process.
set -eu
run=$1 layer=$2 root=$3 data=$4 sockets=$5
shift 5

# Our starter writes us down before it says the word. If it dies first, so do we: an engine that
# is not on record would not be found again.
read -r word

# /proc is still the host's, so this tells our process id as the host sees it, and our age.
read -r stat < /proc/self/stat
echo "$stat" > "$run/stat"

# The engine writes to its root (iptables links, trusted certificates); what it writes is gone
# at the next start, and the cached folders stay as they were built.
mount -t tmpfs -o mode=755 cresset "$run/mnt"
cd "$run/mnt"
mkdir layer base upper work root
mount --bind "$layer" layer
mount --bind "$root" base
cp -a "$run/etc" upper/etc
mkdir -p upper/usr/local/share
cp -a "$run/ca-certificates" upper/usr/local/share/ca-certificates
# Relative names, because a colon or a comma in a path would end an option.
mount -t overlay -o lowerdir=layer:base,upperdir=upper,workdir=work cresset root

cd root
mount --rbind /sys sys
mount --rbind /dev dev
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/dagger var/lib/dagger
mount --bind "$data" var/lib/dagger
mount --bind "$sockets" run/dagger
# Names resolve as they do on the host; the engine lays its own resolver over this one.
for file in etc/resolv.conf etc/hosts; do
    [ -e "/$file" ] || continue
    rm -f "$file" # never write through a link: it could lead out of this root
    : > "$file"
    mount --bind "$(readlink -f "/$file")" "$file"
done

# runc finds its paths in the root of the mount namespace, so a chroot would not do.
pivot_root . .
umount -l .
cd /
exec /usr/local/bin/dagger-engine "$@"
