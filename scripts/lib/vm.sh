# shellcheck shell=bash
# Sourced. A virtual machine with Debian's own kernel and systemd, whose power can be cut. Nothing outside it is reachable from within.
#
# Two disks: the system, and what the daemon and containerd have on disk. The latter is behind nbdkit, which keeps what was written in a cache of its own, as a
# disk does, until the guest asks for a flush: killed with the machine, it loses that.

packages_vm=(qemu-system-x86 qemu-utils nbdkit openssh-client debootstrap e2fsprogs)
# In the guest: what README.md and the end-to-end tests want, a kernel, file systems, a way in.
guest_packages=linux-image-amd64,initramfs-tools,zstd,systemd-sysv,udev,openssh-server,iproute2,procps,strace,xfsprogs,btrfs-progs
guest_packages+=,containerd,runc,docker-registry,apache2-utils,fuse3,ca-certificates
guest_packages+=,busybox-static,attr,curl,e2fsprogs,erofs-utils,libcap2-bin,gzip,xz-utils

vm=''       # folder of the finished system: root.img, vmlinuz, initrd, key
vm_accelerator=()
vm_port=''  # of 127.0.0.1, to the guest's sshd

# vm_system CACHE: sets `vm`, and makes the system when it is not there yet for this recipe.
vm_system() {
    local new
    vm=$1/vm-$(cat "$repository"/scripts/lib/{debian,vm}.sh | sha256sum | cut -c 1-12)
    if [[ -s $vm/root.img ]]; then
        say "the system is in $1 already"
        return
    fi
    new=$vm.new
    rm -rf --one-file-system -- "$new"
    mkdir -p "$new"
    debian_rootfs "$new/root" "$guest_packages"
    vm_settings "$new"
    cp -L "$new/root/vmlinuz" "$new"
    cp -L "$new/root/initrd.img" "$new/initrd"
    # Sparse, and without a mount.
    truncate -s 4G "$new/root.img.new"
    with_dots 'mkfs.ext4' mkfs.ext4 -q -L root -d "$new/root" "$new/root.img.new"
    rm -rf --one-file-system -- "$new/root"
    mv -- "$new/root.img.new" "$new/root.img"
    mv -- "$new" "$vm"
}

# vm_settings FOLDER: the key to get in, and what a machine needs to come up.
vm_settings() {
    local root=$1/root
    ssh-keygen -q -t ed25519 -N '' -C vm -f "$1/key"
    install -D -m 600 "$1/key.pub" "$root/root/.ssh/authorized_keys"
    printf '%s\n' guest >"$root/etc/hostname"
    printf '%s\n' '127.0.0.1 localhost guest' >"$root/etc/hosts"
    printf '%s\n' 'LABEL=root / ext4 errors=remount-ro 0 1' 'LABEL=data /data auto nofail,private,x-systemd.device-timeout=20 0 0' \
        '/data/containerd /var/lib/containerd none bind,nofail 0 0' \
        '/data/soci /var/lib/soci-snapshotter-grpc none bind,nofail 0 0' >"$root/etc/fstab"
    mkdir -p "$root"/{data,var/lib/containerd,var/lib/soci-snapshotter-grpc}
    printf '[Match]\nName=en*\n[Network]\nDHCP=ipv4\n' >"$root/etc/systemd/network/guest.network"
    rm -rf -- "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # Nothing waits for a network that has nobody on it.
    chroot "$root" systemctl --quiet enable systemd-networkd
    chroot "$root" systemctl --quiet mask systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer
}

# vm_disks: new ones, in the scratch folder; the second one is empty.
vm_disks() {
    rm -f -- "$scratch"/{root.qcow2,data.img}
    qemu-img create -q -f qcow2 -b "$vm/root.img" -F raw "$scratch/root.qcow2"
    truncate -s 6G "$scratch/data.img"
}

# vm_choose: sets `vm_accelerator`. There are machines whose /dev/kvm runs no ordinary kernel: one without a root tells, as it panics in a second.
vm_choose() {
    local said=$scratch/kvm.log
    vm_accelerator=(-machine 'q35,accel=kvm' -cpu 'host,arch-capabilities=off')
    if [[ -w /dev/kvm ]] && timeout 15 qemu-system-x86_64 "${vm_accelerator[@]}" -m 512 -nodefaults -no-user-config -display none -no-reboot \
        -serial "file:$said" -kernel "$vm/vmlinuz" -append 'console=ttyS0 panic=-1' 2>/dev/null && grep -q 'Kernel panic' "$said"; then
        return
    fi
    say 'without KVM: everything takes ten times as long'
    vm_accelerator=(-machine 'q35,accel=tcg' -cpu max)
}

# vm_boot: starts it, and waits until it lets us in.
vm_boot() {
    ((${#vm_accelerator[@]})) || vm_choose
    [[ -n $vm_port ]] || vm_port=$(free_port)
    rm -f -- "$scratch"/data.{sock,pid}
    start nbdkit nbdkit --foreground --unix "$scratch/data.sock" --pidfile "$scratch/data.pid" \
        --filter=cache file "$scratch/data.img" cache=writeback
    wait_for 10 nbdkit test -s "$scratch/data.pid"
    start qemu nice -n 10 qemu-system-x86_64 -name soci-test "${vm_accelerator[@]}" -smp 1 -m "${VM_MEMORY:-2560}" \
        -nodefaults -no-user-config -display none -no-reboot -serial "file:$scratch/console-$((++vm_boots)).log" \
        -kernel "$vm/vmlinuz" -initrd "$vm/initrd" -append 'root=LABEL=root console=ttyS0 panic=-1 net.ifnames=1 systemd.show_status=no' \
        -drive "file=$scratch/root.qcow2,format=qcow2,if=virtio,cache=writeback" \
        -drive "file=nbd:unix:$scratch/data.sock,format=raw,if=virtio,cache=writeback,discard=unmap" \
        -device virtio-rng-pci -netdev "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:$vm_port-:22" -device virtio-net-pci,netdev=net
    # bash has nothing to say when they are killed.
    disown "${pid_of[nbdkit]}" "${pid_of[qemu]}"
    wait_for 300 'the guest' vm_answers
    ! vm_ended || die 'the guest ended before it was up'
}
vm_boots=0

vm_answers() { vm_ended || in_guest 20 true; }

# in_guest SECONDS COMMAND...: as root in the guest; what is on standard input goes there.
in_guest() {
    local limit=$1
    shift
    timeout --kill-after=5 "$limit" ssh -q -i "$vm/key" -p "$vm_port" -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 \
        -o ControlMaster=auto -o "ControlPath=$scratch/ssh-$vm_boots" -o ControlPersist=600 \
        -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 "$@"
}

# vm_cut lost|kept: the power goes in this moment. `kept`: the disk has written what was in its cache; `lost`: only what it was told to.
vm_cut() {
    kill -STOP "${pid_of[qemu]}"
    [[ $1 == lost ]] || qemu-io -f raw -c flush "nbd:unix:$scratch/data.sock" >/dev/null
    stop nbdkit KILL
    stop qemu KILL
}

# vm_ended: the guest switched itself off, or rebooted (it does not come up again by itself).
vm_ended() { ! kill -0 "${pid_of[qemu]}" 2>/dev/null; }
