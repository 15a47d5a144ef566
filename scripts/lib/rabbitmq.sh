# shellcheck shell=bash
# Sourced. An image of RabbitMQ out of Debian's own packages: 10 gzip layers, 3 of them over 10 MiB.

archive='' # of the image, once it is made
ports=()   # options of `run` that choose the server's ports

# rabbitmq_trim ROOT: what no server needs goes, its settings come.
rabbitmq_trim() {
    local root=$1
    debian_trim "$root"
    rm -rf -- "$root"/var/cache/apt/* "$root"/var/lib/rabbitmq/.erlang.cookie
    printf '%s\n' 'log.console = true' 'log.console.level = info' 'log.file = false' \
        >"$root/etc/rabbitmq/rabbitmq.conf"
    printf '#!/bin/sh\n%s\n' '# RabbitMQ in the foreground; the cookie is made at the first start.' >"$root/usr/local/bin/rabbitmq"
    printf '%s\n' 'exec /usr/lib/rabbitmq/bin/rabbitmq-server "$@"' >>"$root/usr/local/bin/rabbitmq"
    chmod 755 "$root/usr/local/bin/rabbitmq"
}

# rabbitmq_image ROOT REFERENCE ARCHIVE: cut ROOT into layers; each path goes to the first pattern that it fits.
rabbitmq_image() {
    local root=$1 reference=$2 archive=$3 work number pattern
    work=$archive.layout
    local -a patterns=(
        '^etc/rabbitmq(/|$)'                                             # 9 the server's settings
        '^usr/local(/|$)'                                                # 10 its entry point
        '^usr/lib/rabbitmq(/|$)|^usr/sbin/rabbitmq|^usr/share/rabbitmq'  # 3 the server            > 10 MiB
        '^usr/lib/erlang(/|$)|^usr/(lib|share|bin)/[^/]*python3|^usr/lib/x86_64-linux-gnu/lib(crypto|ssl)' # 2 what it stands on > 10 MiB
        '^var/lib/dpkg(/|$)'                                             # 4 package data base
        '^usr/share/(man|info|lintian|bug)(/|$)'                         # 5 manual pages
        '^var(/|$)'                                                      # 6 state, owned by the server's user
        '^etc(/|$)'                                                      # 7 accounts and settings
        '^usr/share/(perl|zoneinfo|bash-completion|pam)'                 # 8 odds and ends
        '.'                                                              # 1 the base               > 10 MiB
    )
    local -a order=(10 4 3 5 6 7 8 9 1 2)
    begin_image "$work"
    find "$root" -mindepth 1 -printf '%P\n' >"$work/paths"
    number=0
    for pattern in "${patterns[@]}"; do
        number=$((number + 1))
        grep -E -- "$pattern" "$work/paths" >"$work/paths.$number" || die "no path of the image fits $pattern"
        grep -Ev -- "$pattern" "$work/paths" >"$work/rest" || true
        mv -- "$work/rest" "$work/paths"
    done
    for number in "${order[@]}"; do
        say "layer $(($(wc -l <"$work/layers") + 1)) of 10"
        add_paths "$work" "$root" <"$work/paths.$number"
    done
    finish_image "$work" "$reference" "$(rabbitmq_config)" "$archive"
    number=$(awk '$3 > 10485760' "$work/layers" | wc -l)
    [[ $(wc -l <"$work/layers") -eq 10 && $number -eq 3 ]] || die "the image has $number layers over 10 MiB instead of 3"
    rm -rf -- "$work"
}

# rabbitmq_config: the "config" object: who runs what. On loopback only: with --net-host the ports are the machine's.
rabbitmq_config() {
    printf '%s' '{"User":"rabbitmq","Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",' \
        '"HOME=/var/lib/rabbitmq","LANG=C.UTF-8","RABBITMQ_NODENAME=rabbit@localhost",' \
        '"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1","ERL_EPMD_ADDRESS=127.0.0.1",' \
        '"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"],' \
        '"Entrypoint":["/usr/local/bin/rabbitmq"],"WorkingDir":"/var/lib/rabbitmq"}'
}

# rabbitmq_archive CACHE REFERENCE: sets `archive`, and makes it when it is not there yet for this recipe.
rabbitmq_archive() {
    local cache=$1
    archive=$cache/rabbitmq-$(cat "$repository"/scripts/lib/{debian,image,rabbitmq}.sh | sha256sum | cut -c 1-12).tar
    if [[ -s $archive ]]; then
        say "the image is in $cache already"
        return
    fi
    mkdir -p "$cache"
    debian_rootfs "$cache/rootfs" rabbitmq-server
    rabbitmq_trim "$cache/rootfs"
    rabbitmq_image "$cache/rootfs" "$2" "$archive"
    rm -rf --one-file-system -- "$cache/rootfs"
}

# rabbitmq_ports: sets `ports` to the options that give the server free ports, where the usual ones are taken on this machine.
rabbitmq_ports() {
    local port taken=''
    ports=()
    for port in 4369 5672 25672; do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && taken=$port
    done
    [[ -z $taken ]] || ports=(--env "RABBITMQ_NODE_PORT=$(free_port)" --env "RABBITMQ_DIST_PORT=$(free_port)" --env "ERL_EPMD_PORT=$(free_port)")
}
