#!/bin/sh
# Say what in this running container keeps it from working, then mend it; --dry-run says it only.
set -eu
# Root runs no program of a folder that users write to.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset LD_PRELOAD

case ${1:-} in
    '') mend=yes ;;
    --dry-run) mend= ;;
    *) echo 'usage: fixes [--dry-run]' >&2; exit 2 ;;
esac
found=

fix() {
    found=yes
    echo "found: $1"
    shift
    echo "  mended by: $*"
    [ -z "$mend" ] || "$@" || { echo '  that failed; run it as root' >&2; exit 1; }
}

for folder in /var/lib/cresset/history /var/lib/cresset/ide; do
    [ ! -d $folder ] || [ -k $folder ] ||
        fix "$folder is a volume that only its owner can write to: no history, no IDE server" chmod 1777 $folder
done

venv=${VIRTUAL_ENV:-/nonexistent}
if [ -d "$venv" ] && [ -n "$(find "$venv" -type d ! -perm -g+w -print -quit)" ]; then
    fix "folders of $venv that root made, by sudo pip: pip of the user fails there" \
        find "$venv" -type d ! -perm -g+w -execdir chmod g+w '{}' +
fi

if ls /usr/lib/*/libcuda.so.1 >/dev/null 2>&1 && ! ldconfig -p | grep -q libcuda.so.1; then
    fix "the driver's libcuda.so.1 came in after the linker's cache was made: no CUDA" ldconfig
fi

# A conda installed by hand brings libraries of its own under the names of the system's.
conda=${CONDA_PREFIX:-/opt/conda}/lib
system=/usr/lib/x86_64-linux-gnu/libstdc++.so.6
if [ -e "$conda/libstdc++.so.6" ] && [ ! "$conda/libstdc++.so.6" -ef $system ] && [ -e $system ]; then
    fix "$conda has a libstdc++ of its own: GLIBCXX not found in what the system compiled" \
        ln -sf $system "$conda/libstdc++.so.6"
fi
if [ -e "$conda/libncursesw.so.6" ]; then
    fix "$conda has an ncurses of its own: htop and the like have no version information" \
        rm -f "$conda/libncursesw.so.6"
fi

[ -n "$found" ] || echo 'nothing to fix'
