#!/bin/sh
# Serve ssh as whoever runs this, on SSH_PORT of loopback, by keys alone; `enter` starts it.
set -eu

keys=/run/cresset/authorized_keys
if [ ! -r $keys ]; then
    echo "serve-ssh: SSH_PORT is set, and there are no keys in $keys; nothing is served" >&2
    exit 0
fi
# Kept with the IDEs' servers, so that a fresh container is still the host that clients know.
host_key=/var/lib/cresset/ide/ssh_host_key-$(id -u)
[ -w /var/lib/cresset/ide ] || host_key=$HOME/.ssh_host_key
[ -e "$host_key" ] || ssh-keygen -q -t ed25519 -N '' -C '' -f "$host_key"
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd

# In the foreground of a shell: as a daemon it would tell nobody why it ends, such as a port that the
# network of the host has taken.
(
    setsid --wait /usr/sbin/sshd -D -e -f /dev/null -p "$SSH_PORT" -h "$host_key" \
        -o "ListenAddress=${SSH_ADDRESS:-127.0.0.1}" -o "AllowUsers=$USER" \
        -o "AuthorizedKeysFile=$keys" -o PasswordAuthentication=no \
        -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password \
        -o LogLevel=ERROR -o PrintMotd=no -o PidFile=none -o "Subsystem=sftp internal-sftp" ||
        echo "serve-ssh: there is no ssh on port $SSH_PORT" >&2
) &
