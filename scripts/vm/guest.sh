#!/usr/bin/env bash
# What scripts/vm.sh has done inside the virtual machine: guest.sh FUNCTION [ARGUMENTS...]. A failure ends it, and says where.
set -Eeuo pipefail
trap 'echo "guest.sh: line $LINENO: $BASH_COMMAND failed" >&2' ERR

here=/root/soci
registry=127.0.0.1:5000
user=somebody:s3cret
image=$registry/files:1
root=/var/lib/soci-snapshotter-grpc
unit=soci-snapshotter.service

# disk TYPE: a file system of this kind below what containerd and the daemon have on disk; both are empty then.
disk() {
    systemctl stop soci-snapshotter.socket "$unit" containerd 2>/dev/null || true
    umount -q "$root" /var/lib/containerd || true
    umount -q /data || true
    wipefs --quiet --all /dev/vdb
    "mkfs.$1" -q -L data /dev/vdb
    systemctl daemon-reload
    mount /data
    mkdir -p /data/containerd /data/soci
    mount --all
    [[ $(findmnt -n -o FSTYPE --target "$root") == "$1" ]]
}

# install_all: as README.md has it for a machine with systemd, and a registry with a password.
install_all() {
    install -m 755 "$here"/{soci,soci-snapshotter-grpc} /usr/local/bin
    cat >>/etc/containerd/config.toml <<END
[proxy_plugins]
  [proxy_plugins.soci]
    type = "snapshot"
    address = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
    [proxy_plugins.soci.exports]
      root = "$root"
END
    install -m 644 "$here"/soci-snapshotter.{service,socket} /etc/systemd/system/
    systemctl daemon-reload
    systemctl --quiet enable soci-snapshotter.socket "$unit"
    htpasswd -iBbc /etc/docker/registry/htpasswd "${user%:*}" "${user#*:}" 2>/dev/null
    sed -i 's|path: /etc/docker/registry$|path: /etc/docker/registry/htpasswd|; s|addr: :5000|addr: 127.0.0.1:5000|' /etc/docker/registry/config.yml
    chmod 644 /etc/docker/registry/htpasswd
    systemctl restart docker-registry
}

# begin LINE...: both start, with these lines in the daemon's configuration.
begin() {
    mkdir -p /etc/soci-snapshotter-grpc
    printf '%s\n' "$@" >/etc/soci-snapshotter-grpc/config.toml
    systemctl start soci-snapshotter.socket "$unit" containerd
    until_true 60 ctr plugin ls 'id==soci'
}

# publish: the image and its index into the registry; nothing of it stays.
publish() {
    ctr image import --no-unpack "$here/files.tar"
    soci image tag docker.io/library/files:1 "$image"
    soci image push --user "$user" "$image"
    soci create --min-layer-size 0 --span-size 65536 "$image"
    soci push --user "$user" "$image"
    forget
}

# forget: all containers, whose tasks a cut may have ended, and all images.
forget() {
    local name
    local -a names
    for name in $(ctr container ls -q); do
        ctr task rm --force "$name" >/dev/null 2>&1 || true
        ctr container rm "$name"
    done
    mapfile -t names < <(soci image ls -q)
    ((!${#names[@]})) || soci image rm --sync "${names[@]}"
    until_true 60 no_mounts
}

no_mounts() { ! grep -q ' fuse.rawBridge ' /proc/self/mountinfo; }

# until_true SECONDS COMMAND...
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "not in time: $*" >&2; return 1; }
        sleep 0.2
    done
}

# pull: lazily.
pull() { soci image rpull --user "$user" "$image"; }

# untouched: nobody has read a byte of a layer, udev neither.
untouched() {
    sleep 3
    soci image status | awk 'NR > 1 && $4 != "0.0B" { print "somebody has read of " $2; bad = 1 } END { exit bad || NR < 2 }'
}

# serve NAME: a container that waits for what it is told to do.
serve() { soci run --detach --snapshotter soci "$image" "$1" sleep 100000; }

# reads NAME FILE...: the container reads these, from the disk or the registry, and every byte is right.
reads() {
    local name=$1 file
    shift
    echo 3 >/proc/sys/vm/drop_caches
    for file; do
        ctr task exec --exec-id "read-$RANDOM$RANDOM" "$name" sh -c "grep ' data/$file\$' /etc/sums | sha256sum -c -s" </dev/null ||
            { echo "wrong or unreadable: $file" >&2; return 1; }
    done
}

# whole: a new container reads every file, and all are right, none missing.
whole() {
    soci run --rm --snapshotter soci "$image" "whole-$RANDOM" sh -c 'sha256sum -c -s /etc/sums && find /data /bin | sort | sha256sum' </dev/null |
        grep -qxF "$(cat "$here/names")  -" || { echo 'wrong bytes or names' >&2; return 1; }
}

# storm: pulls the image, and has containers read all of it, until the end of the machine. Containers that it starts have names of their own.
storm() {
    while :; do
        pull || true
        whole || true
        echo 3 >/proc/sys/vm/drop_caches
    done
}

# agree: containerd and the daemon know of the same snapshots, and nothing is mounted or on disk without one.
agree() { until_true 60 agreed || { agreed; return 1; }; }

agreed() {
    local -a here_known containerd_known
    mapfile -t containerd_known < <(ctr snapshot --snapshotter soci ls | awk 'NR > 1 { print $1 }')
    mapfile -t here_known < <(find "$root/snapshotter/snapshots" -mindepth 1 -maxdepth 1 -type d)
    echo "containerd: ${#containerd_known[@]} snapshots, the daemon: ${#here_known[@]} directories"
    ((${#containerd_known[@]} == ${#here_known[@]}))
}

# disturb WHAT: what an operator does, or what happens to him; the daemon is there again then.
disturb() {
    case $1 in
        kill-daemon) kill -KILL "$(systemctl show -P MainPID "$unit")" ;;
        kill-unit) systemctl kill --signal=KILL "$unit" ;;
        restart) systemctl restart "$unit" ;;
        stop-start) systemctl stop soci-snapshotter.socket "$unit" && systemctl start soci-snapshotter.socket "$unit" ;;
        upgrade)
            cp "$here/soci-snapshotter-grpc" /usr/local/bin/soci-snapshotter-grpc.new
            mv -f /usr/local/bin/soci-snapshotter-grpc.new /usr/local/bin/soci-snapshotter-grpc
            systemctl restart "$unit"
            ;;
        restart-containerd) systemctl restart containerd ;;
        kill-containerd) systemctl kill --kill-who=main --signal=KILL containerd && sleep 1 ;;
    esac
    active
}

# interrupt: SIGINT ends everything; no mount and no process of ours is left. systemd starts the daemon again, which mounts everything anew.
interrupt() {
    local before
    before=$(systemctl show -P NRestarts "$unit")
    ctr task rm --force one && ctr container rm one
    kill -INT "$(systemctl show -P MainPID "$unit")"
    until_true 30 restarted "$before"
    active
}

restarted() { (($(systemctl show -P NRestarts "$unit") > $1)); }

# active: the daemon has started, and containerd finds it.
active() { until_true 60 systemctl is-active "$unit" && until_true 60 ctr snapshot --snapshotter soci ls; }

"$@"
