# shellcheck shell=bash
# Sourced. The Debian packages that the scripts need, in one place, and the check of the Rust toolchain.

# To build: a linker, the C library, protoc for containerd-client's build.
packages_build=(gcc libc6-dev protobuf-compiler)
# To run the stack: containerd with runc, a registry and its htpasswd files, FUSE.
packages_stack=(containerd runc docker-registry apache2-utils fuse3 ca-certificates)
# To make images.
packages_image=(debootstrap gzip tar xz-utils)
# For the benchmarks' certificates and made-up images.
packages_bench=(openssl busybox-static)
# What the tests compare with and make their images from.
packages_tests=(attr busybox-static curl e2fsprogs erofs-utils libcap2-bin python3 shellcheck systemd util-linux zstd)

# What does as well as a package, where it came from elsewhere: Docker's containerd.io has both, and Debian's would take its place.
declare -A commands_of=([containerd]='containerd ctr' [runc]=runc)

# missing_packages NAME...: those of them that are not installed.
missing_packages() {
    local name
    for name; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) != installed ]] || continue
        # shellcheck disable=SC2086 # one word for each command
        [[ -n ${commands_of[$name]:-} ]] && type -P ${commands_of[$name]} >/dev/null && continue
        printf '%s\n' "$name"
    done
}

# install_packages NAME...: with apt, without starting a service, without one at the next boot that was not wanted, and without taking anything away.
install_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || { say "all Debian packages are there"; return 0; }
    [[ $EUID -eq 0 ]] || die "needs root to install: ${missing[*]}"
    say "installing ${missing[*]}"
    with_dots 'apt-get update' apt-get -q update
    forbid_services
    with_dots 'apt-get install' env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --no-remove install "${missing[@]}"
    allow_services
    # Debian starts a registry on port 5000 at every boot; ours is started by hand.
    if [[ " ${missing[*]} " == *' docker-registry '* && -d /run/systemd/system ]]; then
        systemctl --quiet disable docker-registry 2>/dev/null || true
    fi
}

policy=/usr/sbin/policy-rc.d policy_made=''

# forbid_services: tells the scripts of packages to start nothing, until `allow_services`.
forbid_services() {
    [[ ! -e $policy ]] || return 0
    policy_made=1
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

# allow_services: takes that back; does nothing when there is nothing to take back.
allow_services() {
    [[ -z $policy_made ]] || rm -f -- "$policy"
    policy_made=''
}

# need_cargo: a cargo that is as new as rust-version in Cargo.toml asks for.
need_cargo() {
    local wanted found home
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    [[ -n $(type -P cargo) ]] || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if [[ -z $(type -P cargo) && -n ${SUDO_USER:-} ]]; then
        # Under sudo the toolchain is the user's.
        home=$(getent passwd "$SUDO_USER" | cut -d : -f 6)
        export PATH=$PATH:$home/.cargo/bin RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup}
    fi
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || true
    if [[ -z $found || $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) != "$wanted" ]]; then
        die "needs cargo $wanted or newer (${found:-none} found); get it with: curl https://sh.rustup.rs -sSf | sh -s -- -y && . \"\$HOME/.cargo/env\""
    fi
}

# need_components NAME...: rustfmt, clippy.
need_components() {
    local name
    for name; do
        cargo "${name/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
        rustup component add "$name" || die "needs cargo's $name"
    done
}
