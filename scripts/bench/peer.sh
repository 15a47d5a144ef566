# shellcheck shell=bash
# Sourced. The Go project's snapshotter in the place of ours, if SOCI_PEER_BIN says where it is.

# What containerd has to be told before its transfer service, which nerdctl uses, pulls lazily.
lazy_transfer=('enable_remote_snapshot_annotations = "true"')
for snapshotter in soci overlayfs; do
    lazy_transfer+=('[[plugins."io.containerd.transfer.v1.local".unpack_config]]' 'platform = "linux/amd64"'
        "snapshotter = \"$snapshotter\"" 'differ = "walking"')
done

# start_peer: its daemon, on the socket where containerd looks for ours, with the registry's authority among those it trusts.
start_peer() {
    printf '%s\n' '[content_store]' 'type = "containerd"' "containerd_address = \"$scratch/containerd/containerd.sock\"" \
        '[pull_modes.soci_v1]' 'enable = true' '[snapshotter]' 'min_layer_size = 0' "${daemon_config:-}" >"$scratch/soci/config.toml"
    start soci-snapshotter-grpc env SSL_CERT_FILE="$scratch/tls/ca.pem" "$SOCI_PEER_BIN/soci-snapshotter-grpc" \
        --address "$scratch/soci/soci-snapshotter-grpc.sock" --root "$scratch/soci/root" --config "$scratch/soci/config.toml"
    wait_for 15 'soci-snapshotter-grpc of SOCI_PEER_BIN' test -S "$scratch/soci/soci-snapshotter-grpc.sock"
}

# peer_pull REFERENCE: as its users do it. What nerdctl has to know about this stack is in a file that it finds by itself.
peer_pull() {
    local -a command
    printf '%s\n' "address = \"$CONTAINERD_ADDRESS\"" "namespace = \"$namespace\"" 'snapshotter = "soci"' \
        "hosts_dir = [\"$scratch/hosts\"]" "data_root = \"$scratch/nerdctl\"" >"$scratch/nerdctl.toml"
    read -ra command <<<"${SOCI_PEER_PULL:-nerdctl pull}"
    NERDCTL_TOML=$scratch/nerdctl.toml SSL_CERT_FILE=$scratch/tls/ca.pem "${command[@]}" "$1"
}

# peer_version: of its daemon, and of the command that pulls for it, as they say themselves.
peer_version() {
    local -a command
    read -ra command <<<"${SOCI_PEER_PULL:-nerdctl pull}"
    printf 'the Go project (%s), pulled by %s' "$("$SOCI_PEER_BIN/soci-snapshotter-grpc" --version | tr -s '\n' ' ' | sed 's/ $//')" \
        "$("${command[0]}" --version | head -n 1)"
}

# peer_remove_content: the Go project keeps what it fetched itself for ever.
peer_remove_content() {
    local -a digests
    mapfile -t digests < <(ctr content ls -q)
    ((${#digests[@]} == 0)) || quietly ctr content rm "${digests[@]}"
}
