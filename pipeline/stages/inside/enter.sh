#!/bin/sh
# Run a command as the user outside, in an image that knows no user; without a command, a shell.
# It is the entrypoint of a container, and what `docker exec` enters a running one by.
#
#   UID, GID, USR, GRP  the user; without them whoever owns the project's folder
#   ADD_USER=exclude    stay root
#   SUDO=include        let the user become root by sudo
#   SSH_PORT            serve ssh on this port of loopback, to who has a key
#
# Where the container runtime has chosen a user already (--user, Kubernetes, Podman's keep-id),
# that one stays, and only gets a name and a home if it lacks them.
set -eu

# What the command gets and this program does without. As root it runs no program of a folder that
# users write to, and what jemalloc does in its threads makes setpriv abort.
path=$PATH preload=${LD_PRELOAD:-}
PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset LD_PRELOAD

refuse() {
    echo "enter: $1" >&2
    exit 2
}

is_number() {
    case $1 in '' | *[!0-9]* | ???????????*) return 1 ;; esac
    [ "$1" -lt 4294967295 ]
}

# What ends in /etc/passwd and in a file of sudo's must hold nothing that these read otherwise.
is_name() {
    case $1 in '' | [!A-Za-z_]* | *[!A-Za-z0-9_.-]*) return 1 ;; esac
}

choose_user() {
    uid=${UID:-} gid=${GID:-} name=${USR:-user} group=${GRP:-${USR:-user}}
    if [ "${ADD_USER:-include}" = exclude ]; then
        uid=0
    elif [ -z "$uid" ]; then
        # A folder of the machine that is mounted here tells whose it is.
        uid=$(stat -c %u .) gid=${gid:-$(stat -c %g .)}
    fi
    gid=${gid:-$uid}
    is_number "$uid" || refuse "UID='$uid' is not a number; \`id -u\` prints yours"
    is_number "$gid" || refuse "GID='$gid' is not a number; \`id -g\` prints yours"
    is_name "$name" || refuse "USR='$name' is not a user name: a letter, then letters, digits, . _ -"
    is_name "$group" || refuse "GRP='$group' is not a group name: a letter, then letters, digits, . _ -"
    # Of a rootless engine root in the container is the user outside, and no other id is.
    read -r _ outside _ </proc/self/uid_map
    [ "$outside" != "$uid" ] || uid=0
    # Other programs need a root that is root.
    [ "$name" != root ] || name=user
    [ "$group" != root ] || group=user
}

# Write a file of lines by name and id in one step, with ours in place of what has either.
write_line() {
    awk -F: -v name="$2" -v id="$3" '$1 != name && $3 != id' "$1" >"$1.$$"
    echo "$4" >>"$1.$$"
    mv "$1.$$" "$1"
}

add_user() {
    # A * for the password: nobody logs in by one, and no program looks for it in /etc/shadow.
    line="$name:*:$uid:$gid::/home/$name:$SHELL"
    ! grep -qxF "$line" /etc/passwd || return 0
    [ "$gid" = 0 ] || write_line /etc/group "$group" "$gid" "$group:x:$gid:"
    write_line /etc/passwd "$name" "$uid" "$line"
    sudo=/etc/sudoers.d/cresset
    rm -f $sudo
    if [ "${SUDO:-exclude}" = include ]; then
        [ -d /etc/sudoers.d ] || refuse "SUDO=include, and the image has no sudo"
        # By number: a name may be a word of sudo's own.
        echo "#$uid ALL=(ALL) NOPASSWD: ALL" >$sudo.$$
        chmod 440 $sudo.$$
        # Without a dot in its name: sudo passes over others.
        mv $sudo.$$ $sudo
    fi
}

# What ssh, su and sudo -i take out of the environment, a login shell takes from here.
keep_environment() {
    [ -w /run ] || return 0
    mkdir -p /run/cresset
    (
        unset HOME HOSTNAME LOGNAME OLDPWD PWD SHELL SHLVL TERM USER
        unset UID GID USR GRP ADD_USER SUDO
        umask 077
        PATH=$path
        [ -z "$preload" ] || export LD_PRELOAD="$preload"
        export -p >/run/cresset/environment.$$
    )
    chown "$uid" /run/cresset/environment.$$
    mv /run/cresset/environment.$$ /run/cresset/environment
}

# Name the user without writing to /etc, for this command and what it starts.
wrap_names() {
    wrapper=/usr/lib/x86_64-linux-gnu/libnss_wrapper.so
    names=${TMPDIR:-/tmp}/names-$uid
    # As the user: root should follow no link that somebody put there.
    [ -e $wrapper ] && $become mkdir -p "$names" 2>/dev/null || return 0
    # Somebody else may have made it first, since all may write there.
    $become test -O "$names" || return 0
    $become sh -c '
        awk -F: -v name="$1" -v id="$2" "\$1 != name && \$3 != id" /etc/passwd >"$4/passwd.$$"
        echo "$1:*:$2:$3::$HOME:$SHELL" >>"$4/passwd.$$"
        mv "$4/passwd.$$" "$4/passwd"
        grep -v "^[^:]*:[^:]*:$3:" /etc/group >"$4/group" || :
        echo "$5:x:$3:" >>"$4/group"
    ' names "$name" "$uid" "$gid" "$names" "$group"
    export NSS_WRAPPER_PASSWD="$names/passwd" NSS_WRAPPER_GROUP="$names/group"
    preload="$wrapper${preload:+:$preload}"
}

# Take a home that the user can write to, this one if that can be.
own_home() {
    export HOME="$1"
    # Only before the user has a process, who could put a link in the way of root.
    if [ "$(id -u)" = 0 ] && is_start && [ ! -L "$HOME" ]; then
        { mkdir -p "$HOME" && chown "$uid:$gid" "$HOME"; } 2>/dev/null || :
        # Docker makes what is above a mount, such as ~/.cache, for root. What is deeper is the
        # user's already, or else was never meant to be.
        find "$HOME" -xdev -mindepth 1 -maxdepth 2 -type d -uid 0 \
            -execdir chown -h "$uid:$gid" '{}' + 2>/dev/null || :
    fi
    ! $become test -w "$HOME" || return 0
    HOME=${TMPDIR:-/tmp}/home-$uid
    $become mkdir -p -m 700 "$HOME" 2>/dev/null && $become test -O "$HOME" || HOME=/
}

# As the user: what a home begins with, none of which is ever written over.
furnish='
    [ -w "$HOME" ] || exit 0
    [ -e "$HOME/.zshrc" ] || cp -n /etc/skel/.[!.]* "$HOME"
    [ -w /var/lib/cresset/ide ] || exit 0
    kept=/var/lib/cresset/ide/$(id -u)
    for ide in .vscode-server .vscode-server-insiders .cursor-server .windsurf-server .cache/JetBrains
    do
        [ ! -e "$HOME/$ide" ] || continue
        mkdir -p "$kept/$ide" "$(dirname "$HOME/$ide")"
        ln -s "$kept/$ide" "$HOME/$ide"
    done
'

# Whether this is the start of the container, or another way into it that has all in place.
is_start() {
    [ $$ = 1 ] || [ "$PPID" = 1 ]
}

SHELL=$(command -v zsh || command -v bash || command -v sh)
export SHELL
[ $# -gt 0 ] || set -- "$SHELL"

if [ "$(id -u)" != 0 ]; then
    uid=$(id -u) gid=$(id -g) become=
    name=$(id -un 2>/dev/null) || name=
    group=$(id -gn 2>/dev/null) || group=${GRP:-user}
    is_name "$group" || group=user
    own_home "${HOME:-/}"
    if [ -z "$name" ]; then
        name=${USR:-user}
        is_name "$name" && [ "$name" != root ] || name=user
        wrap_names
    fi
else
    choose_user
    if [ "$uid" = 0 ]; then
        name=root become=
        export HOME=/root
        # ssh runs a command by the shell that stands there; bash would not read the environment.
        ! is_start || sed -i "/^root:/s|[^:]*$|$SHELL|" /etc/passwd 2>/dev/null || :
    else
        become="setpriv --reuid $uid --regid $gid --groups $(id -G | tr ' ' ,),$gid"
        if [ -w /etc/passwd ]; then
            add_user
            own_home "/home/$name"
        else
            own_home "/home/$name"
            wrap_names
        fi
    fi
    ! is_start || keep_environment
fi
export USER="$name" LOGNAME="$name"
$become sh -c "$furnish" || echo "enter: $HOME could not be furnished" >&2
if is_start && [ -n "${SSH_PORT:-}" ]; then
    $become /usr/local/bin/serve-ssh
fi
unset UID GID USR GRP ADD_USER SUDO
exec $become env PATH="$path" ${preload:+LD_PRELOAD="$preload"} "$@"
