#!/usr/bin/env bash
# Debian 12 in a virtual machine: its kernel, its systemd, power cuts. See usage below.
set -Eeuo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/say.sh
. "$repository/scripts/lib/say.sh"
# shellcheck source=scripts/lib/packages.sh
. "$repository/scripts/lib/packages.sh"
# shellcheck source=scripts/lib/scratch.sh
. "$repository/scripts/lib/scratch.sh"
# shellcheck source=scripts/lib/stack.sh
. "$repository/scripts/lib/stack.sh"
# shellcheck source=scripts/lib/image.sh
. "$repository/scripts/lib/image.sh"
# shellcheck source=scripts/lib/debian.sh
. "$repository/scripts/lib/debian.sh"
# shellcheck source=scripts/lib/vm.sh
. "$repository/scripts/lib/vm.sh"

usage() {
    cat <<EOF
usage: scripts/vm.sh [--cache DIR] [--binaries DIR] [walk|cuts]...

  walk   README.md's set-up with systemd; then the daemon is killed, restarted, stopped, replaced and interrupted, containerd restarted and killed, the machine
         rebooted without a registry: containers go on, and all bytes are right
  cuts   the power goes at random moments of pulling and reading, with ext4, xfs and btrfs (SOCI_VM_SYSTEMS), three times each (SOCI_VM_CUTS): no byte is wrong
         afterwards, and containerd and the daemon agree. SOCI_VM_SEED repeats the moments, as far as a machine does

Without a name: both. Makes the system once, from Debian's packages; 1 GB below DIR (default: target/vm). Fast with KVM (a minute a boot without it).
  --binaries DIR   use soci and soci-snapshotter-grpc from there instead of building them
EOF
}

steps=() binaries='' cache=${CARGO_TARGET_DIR:-$repository/target}/vm
while (($#)); do
    case $1 in
        walk | cuts) steps+=("$1") ;;
        --cache) cache=${2:?--cache needs a folder}; shift ;;
        --binaries) binaries=$(cd "${2:?--binaries needs a folder}" && pwd); shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((${#steps[@]})) || steps=(walk cuts)
[[ $EUID -eq 0 ]] || die 'run it as root: it unpacks a system'

# files_image ARCHIVE: programs and thirty files of a megabyte, in three layers; the sums of all are in /etc/sums. Beside it the sum of its names.
files_image() {
    local work=$1.layout tree=$1.tree name
    mkdir -p "$tree"/{bin,data,etc,proc,sys,dev,run,tmp}
    cp /bin/busybox "$tree/bin/"
    for name in sh cat find grep sha256sum sleep sort; do ln -s busybox "$tree/bin/$name"; done
    for name in {1..30}; do head -c 333333 /dev/urandom | od -A n -v -t x1 >"$tree/data/$name"; done
    (cd "$tree" && sha256sum bin/busybox data/* >etc/sums)
    begin_image "$work"
    (cd "$tree" && find bin data/? etc proc sys dev run tmp) | add_paths "$work" "$tree"
    (cd "$tree" && find data/1?) | add_paths "$work" "$tree"
    (cd "$tree" && find data/2? data/30) | add_paths "$work" "$tree"
    finish_image "$work" docker.io/library/files:1 '{"Env":["PATH=/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"}' "$1"
    (cd "$tree" && find data bin -printf '/%p\n') | LC_ALL=C sort | sha256sum | cut -d ' ' -f 1 >"${1%/*}/names"
    rm -rf -- "$work" "$tree"
}

# guest FUNCTION [ARGUMENTS...]: of scripts/vm/guest.sh, in the guest, for five minutes at most.
guest() { in_guest 300 bash /root/soci/guest.sh "$@" </dev/null; }

# machine SYSTEM CONFIG-LINE...: a new one that runs both programs, with a registry, in which the image and its index are.
machine() {
    local system=$1
    shift
    vm_disks
    vm_boot
    tar --create --directory="$scratch/soci" . | in_guest 120 'mkdir -p soci && tar --extract --no-same-owner --directory=soci'
    guest disk "$system"
    guest install_all
    # A line of the file each, and a word for the shell over there.
    guest begin "$(printf '%q ' "$@")"
    guest publish >/dev/null
    say "Linux $(in_guest 20 uname -r), $(in_guest 20 systemctl --version | head -n 1 | cut -d '(' -f 1), $system: $(in_guest 20 journalctl -u soci-snapshotter -o cat --no-pager | grep -o 'layers are mounted[^"]*' | head -n 1)"
}

# nothing_ahead: only what is read is fetched, so that there is always something that is not here.
nothing_ahead=('[background_fetch]' 'disable = true' '[limits]' 'read_ahead_bytes = "0b"' 'start_files = 0' 'guesses = 0')

walk() {
    local what number=1
    machine ext4 "${nothing_ahead[@]}"
    # udev notices new rules within three seconds.
    sleep 3
    guest pull
    guest untouched
    guest serve one
    guest reads one 1
    for what in kill-daemon restart stop-start upgrade kill-unit restart-containerd kill-containerd kill-daemon; do
        number=$((number + 1))
        guest disturb "$what"
        # What is here, and what has to be fetched now, with the credentials of the pull.
        guest reads one 1 "$number" || die "a container did not survive: $what"
        say "$what: the container goes on"
    done
    guest interrupt
    guest serve two
    guest reads two 1 "$number"
    say 'SIGINT: a new container reads what is here'
    in_guest 20 systemctl disable --quiet --now docker-registry
    in_guest 20 systemctl reboot 2>/dev/null || true
    # systemd waits a minute and a half for containers.
    wait_for 240 'the end of the guest' vm_ended
    stop qemu
    stop nbdkit
    vm_boot
    guest active
    guest serve three
    guest reads three 1 "$number"
    guest agree
    say 'reboot without a registry: a new container reads what is here'
    vm_off
}

cuts() {
    local system
    RANDOM=${SOCI_VM_SEED:=$RANDOM}
    say "SOCI_VM_SEED=$SOCI_VM_SEED"
    for system in ${SOCI_VM_SYSTEMS:-ext4 xfs btrfs}; do cuts_on "$system"; done
}

cuts_on() {
    local round began took moment kind
    machine "$1"
    began=$(now)
    guest pull >/dev/null
    guest whole
    took=$(since "$began")
    for ((round = 1; round <= ${SOCI_VM_CUTS:-3}; round++)); do
        guest forget >/dev/null
        kind=lost
        ((round % 2)) || kind=kept
        moment=$(awk -v took="$took" -v dice="$RANDOM" 'BEGIN { printf "%.1f", took * 1.2 * dice / 32768 }')
        in_guest 20 'setsid bash soci/guest.sh storm >storm.log 2>&1 </dev/null & sleep 0.1'
        sleep "$moment"
        vm_cut "$kind"
        vm_boot
        guest active
        guest agree
        guest pull >/dev/null
        guest whole
        guest agree >/dev/null
        say "$1, cut $round after $moment s of $took s, what was not flushed is $kind: no wrong byte"
    done
    vm_off
}

# vm_off: the guest is of no more use.
vm_off() {
    stop qemu KILL
    stop nbdkit KILL
}

open_scratch soci-vm
heading 'What is needed'
install_packages "${packages_vm[@]}" "${packages_image[@]}" busybox-static
if [[ -z $binaries ]]; then
    install_packages "${packages_build[@]}"
    need_cargo
    say 'building soci and soci-snapshotter-grpc (release)'
    (cd "$repository" && cargo build --release --locked --package soci --package soci-snapshotter-grpc)
    binaries=${CARGO_TARGET_DIR:-$repository/target}/release
fi
mkdir -p "$scratch/soci"
for program in soci soci-snapshotter-grpc; do strip -o "$scratch/soci/$program" "$binaries/$program"; done
cp "$repository"/scripts/soci-snapshotter.{service,socket} "$repository/scripts/vm/guest.sh" "$scratch/soci"
vm_system "$cache"
say 'an image'
files_image "$scratch/soci/files.tar"
for step in "${steps[@]}"; do
    heading "$step"
    "$step"
done
heading 'Nothing stays behind'
