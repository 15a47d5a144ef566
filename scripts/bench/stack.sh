# shellcheck shell=bash
# Sourced. The registry with TLS behind a slow link, and the systems that are compared.

link=''  # host:port of the registry as the systems see it, once it runs
system='' # the one that is being measured: overlayfs, soci, soci-fuse (without the kernel front end) or upstream

# start_slow_registry: the registry, its certificate, the link in front of it, and what clients have to know to trust it. The link has
# an address of this machine that is not loopback, which some clients treat in a way of its own; it serves this machine alone.
start_slow_registry() {
    local tls=$scratch/tls address
    address=$(hostname -I | cut -d ' ' -f 1)
    mkdir -p "$tls"
    bench_certificates "$tls" 127.0.0.1 "${address:=127.0.0.1}" >"$scratch/openssl.log" 2>&1 || die 'openssl cannot make certificates'
    start_registry "$tls/registry.pem" "$tls/registry.key"
    link=$address:$(free_port)
    start link soci-bench link --listen "$link" --to "$registry" --round-trip "$round_trip" --megabits "$megabits" --log "$scratch/link.tsv"
    wait_for 15 'the link' link_answers
    for address in "$registry" "$link"; do
        mkdir -p "$scratch/hosts/$address"
        printf '%s\n' "server = \"https://$address\"" "ca = \"$tls/ca.pem\"" >"$scratch/hosts/$address/hosts.toml"
    done
}

link_answers() { (exec 3<>"/dev/tcp/${link%:*}/${link#*:}"); }

# bench_certificates FOLDER ADDRESS ADDRESS: an authority of our own (ca.pem) and the registry's certificate (registry.pem, registry.key).
bench_certificates() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=soci bench' \
        -keyout "$1/ca.key" -out "$1/ca.pem" &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=registry' -keyout "$1/registry.key" -out "$1/registry.csr" &&
        printf 'subjectAltName = IP:%s, IP:%s\n' "$2" "$3" >"$1/extensions" &&
        openssl x509 -req -in "$1/registry.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 2 \
            -extfile "$1/extensions" -out "$1/registry.pem"
}

# crossed: bytes that have come over the link so far. Its log is written a hundred times a second.
crossed() {
    sleep 0.05
    tail -n 1 "$scratch/link.tsv" | cut -d ' ' -f 2
}

# publish ARCHIVE IMAGE: into the registry, with its index; not over the link.
publish() {
    local reference=$registry/$2:bench
    quietly ctr image import --no-unpack "$1"
    quietly ctr image tag --force "docker.io/library/$2:bench" "$reference"
    quietly soci image push --hosts-dir "$scratch/hosts" --platform linux/amd64 "$reference"
    quietly soci create --min-layer-size 0 "$reference"
    quietly soci push --hosts-dir "$scratch/hosts" "$reference"
    remove_images
}

# quietly COMMAND...: its output only when it fails.
quietly() { "$@" >"$scratch/quietly.log" 2>&1 || { cat "$scratch/quietly.log" >&2; die "failed: $*"; }; }

# remove_images: all of them, with their snapshots and content.
remove_images() {
    local -a names
    mapfile -t names < <(ctr image ls -q)
    ((${#names[@]} == 0)) || quietly ctr image rm --sync "${names[@]}"
    [[ $system != upstream ]] || peer_remove_content
    wait_for 30 'the content of removed images' nothing_left
}

nothing_left() {
    [[ -z $(ctr content ls -q) && -z $(ctr snapshot --snapshotter overlayfs ls | tail -n +2) ]] &&
        { [[ -z ${pid_of[soci-snapshotter-grpc]:-} ]] || [[ -z $(ctr snapshot --snapshotter soci ls | tail -n +2) ]]; }
}

# become SYSTEM: what the functions below measure from now on. Snapshots go while the daemon that made them is there.
become() {
    remove_images
    stop soci-snapshotter-grpc INT 30
    system=$1
}

# cold: nothing of an image is here, no cache has anything, the daemon has just started, and what went before has ended. The registry's disk is not what
# we measure.
cold() {
    remove_images
    start_system_anew
    drop_caches
    local deadline=$((SECONDS + 30))
    until ((SECONDS >= deadline)) || at_rest; do :; done
}

# at_rest: for half a second hardly anything is written and nobody works. Whoever comes after a system that has unpacked an image would else be measured while that is still
# being removed.
at_rest() {
    local before after
    read -ra before <<<"$(work_done)"
    sleep 0.5
    read -ra after <<<"$(work_done)"
    ((after[0] - before[0] < 512 && after[1] - before[1] < 10))
}

# work_done: blocks of 512 bytes written to all disks so far, and hundredths of a second that processors worked.
work_done() {
    awk '{ blocks += $10 } END { printf "%d ", blocks }' /proc/diskstats
    awk -v hz="$(getconf CLK_TCK)" '$1 == "cpu" { printf "%d\n", ($2 + $3 + $4 + $7 + $8) * 100 / hz }' /proc/stat
}

# start_system_anew: its daemon, if it has one, with an empty folder.
start_system_anew() {
    stop soci-snapshotter-grpc INT 30
    [[ $system != overlayfs ]] || return 0
    wait_for 30 'the mounts of the daemon that ended' no_layer_mounts
    rm -rf --one-file-system -- "$scratch/soci" "$scratch/soci-snapshotter-grpc.log"
    mkdir -p "$scratch/soci"
    if [[ $system == upstream ]]; then
        start_peer
    else
        bench_daemon_config >"$scratch/soci/config.toml"
        start_snapshotter "${log_level:-info}"
    fi
    wait_for 15 'containerd and the snapshotter' ctr snapshot --snapshotter soci ls
}

no_layer_mounts() { ! grep -qF " $scratch/soci/" /proc/self/mountinfo; }

# bench_daemon_config: for this stack and system, with what the row wants besides (`daemon_config`, which the peer gets, too).
bench_daemon_config() {
    printf '%s\n' '[content_store]' "containerd_address = \"$scratch/containerd/containerd.sock\"" '[resolver]' "config_path = \"$scratch/hosts\""
    if has_kernel_front_end; then
        if [[ $system == soci-fuse ]]; then printf '%s\n' '[fuse]' 'kernel = "off"'; else printf '%s\n' '[fuse]' 'kernel = "auto"'; fi
    fi
    printf '%s\n' "${daemon_config:-}"
}

# has_kernel_front_end: can the daemon of this build put the kernel's own file system on top of FUSE?
has_kernel_front_end() { soci-snapshotter-grpc config default | grep -q '^kernel = '; }

drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    find "$scratch/registry/data" -name data -size +100k -exec cat {} + >/dev/null
}

# pull REFERENCE: as this system does it. overlayfs is containerd's own client with its own snapshotter.
pull() {
    case $system in
        overlayfs) ctr image pull --hosts-dir "$scratch/hosts" --snapshotter overlayfs "$1" ;;
        upstream) peer_pull "$1" ;;
        *) soci image rpull --hosts-dir "$scratch/hosts" "$1" ;;
    esac
}

# in_container REFERENCE ID COMMAND...: to the end of the command.
in_container() {
    local reference=$1 id=$2
    shift 2
    case $system in
        overlayfs) ctr run --rm --snapshotter overlayfs "$reference" "$id" "$@" ;;
        upstream) ctr run --rm --snapshotter soci "$reference" "$id" "$@" ;;
        *) soci run --rm --snapshotter soci "$reference" "$id" "$@" ;;
    esac
}
