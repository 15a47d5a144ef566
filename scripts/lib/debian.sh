# shellcheck shell=bash
# Sourced. Root file systems out of Debian's own packages, for images.

debian_suite=bookworm

# debian_mirror: where apt on this machine gets the suite from.
debian_mirror() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$debian_suite" '$1 == suite { print $2; exit }'
}

# debian_rootfs FOLDER [PACKAGES]: an unpacked minimal Debian by debootstrap, with PACKAGES (separated by commas).
debian_rootfs() {
    local mirror
    mirror=$(debian_mirror)
    [[ -n $mirror ]] || die "apt has no source for Debian $debian_suite on this machine"
    rm -rf --one-file-system -- "$1"
    mkdir -p "$(dirname "$1")"
    # In a mount namespace of its own: what debootstrap mounts (proc, sys) cannot stay behind.
    with_dots "debootstrap $debian_suite${2:+ with $2}" \
        unshare --mount debootstrap --variant=minbase ${2:+--include="$2"} "$debian_suite" "$1" "$mirror"
}

# debian_install BASE FOLDER PACKAGE...: a copy of BASE (of `debian_rootfs`, not trimmed), with packages more.
debian_install() {
    local base=$1 root=$2
    shift 2
    rm -rf --one-file-system -- "$root"
    cp -a -- "$base" "$root"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # shellcheck disable=SC2016 # for the shell inside
    with_dots "apt-get install $*" unshare --mount --pid --fork --mount-proc="$root/proc" \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot "$root" sh -c \
        'apt-get -q -o APT::Sandbox::User=root update &&
         apt-get -q -y -o APT::Sandbox::User=root -o Dir::Cache::archives=/tmp --no-install-recommends install "$@"' sh "$@"
    rm -- "$root/usr/sbin/policy-rc.d"
}

# debian_trim ROOT: what differs from one installation to the next, or only serves apt, goes (but the packages that debootstrap fetched stay).
debian_trim() {
    local root=$1
    rm -rf -- "$root"/var/cache/apt/*.bin "$root"/var/cache/{debconf,ldconfig}/* "$root"/var/lib/apt/lists/* "$root"/var/log/{apt,*.log} \
        "$root"/var/lib/dpkg/*-old "$root"/etc/{machine-id,hostname,resolv.conf} \
        "$root"/{dev,proc,sys,run,tmp}/* "$root"/var/tmp/* "$root"/debootstrap
}

# tree_list ROOT: path, tab, everything that tells whether it is still the same; sorted. A directory's time and size say nothing.
# Both trees are copies of one installation: a file that was written anew has another time.
tree_list() {
    find "$1" -mindepth 1 \( -type d -printf '%P\t%y %m %U %G\n' \) -o -printf '%P\t%y %m %U %G %s %T@ %l\n' | LC_ALL=C sort
}

# tree_difference BASE ROOT: the paths that a layer above BASE needs to make ROOT of it. What is gone gets its `.wh.` file in ROOT.
tree_difference() {
    local base=$1 root=$2 path whiteout
    LC_ALL=C comm -13 <(tree_list "$base") <(tree_list "$root") | cut -f 1
    LC_ALL=C comm -23 <(tree_list "$base" | cut -f 1 | LC_ALL=C sort) <(tree_list "$root" | cut -f 1 | LC_ALL=C sort) |
        while IFS= read -r path; do
            whiteout=.wh.${path##*/}
            [[ $path != */* ]] || whiteout=${path%/*}/$whiteout
            # Below a directory that is gone itself nothing more needs saying.
            [[ -d $(dirname "$root/$whiteout") ]] || continue
            : >"$root/$whiteout"
            printf '%s\n' "$whiteout"
        done
}
