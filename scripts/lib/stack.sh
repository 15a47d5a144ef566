# shellcheck shell=bash
# Sourced. A registry, a containerd and soci-snapshotter-grpc of our own, all in the scratch folder.

registry_user=testuser
registry_password=s3cret-$RANDOM$RANDOM
registry='' # host:port, once it runs

# free_port: a TCP port of 127.0.0.1 that nobody listens on.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((RANDOM % 20000 + 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { printf '%s\n' "$port"; return; }
    done
    die 'no free port on 127.0.0.1'
}

# shellcheck disable=SC2120 # quickstart.sh gives no arguments
# start_registry [CERTIFICATE KEY]: docker-registry on loopback; plain HTTP with one htpasswd user, or TLS for everybody.
start_registry() {
    local port folder=$scratch/registry tls='' auth=''
    port=$(free_port)
    registry=127.0.0.1:$port
    mkdir -p "$folder"
    if (($#)); then
        tls=", tls: {certificate: $1, key: $2}"
    else
        printf '%s\n' "$registry_password" | htpasswd -iBn "$registry_user" >"$folder/htpasswd" 2>/dev/null
        auth="auth: {htpasswd: {realm: quickstart, path: $folder/htpasswd}}"
    fi
    cat >"$folder/config.yml" <<END
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $folder/data}, cache: {blobdescriptor: inmemory}, delete: {enabled: true}}
http: {addr: "$registry"$tls}
$auth
END
    start registry docker-registry serve "$folder/config.yml"
    wait_for 15 'the registry' registry_answers
}

registry_answers() { (exec 3<>"/dev/tcp/${registry%:*}/${registry#*:}"); }

# downloaded: bytes that the registry has sent in answer to GET so far, from its access log.
downloaded() { awk '/"GET [^"]*" (200|206) / { split($0, q, "\""); split(q[3], n, " "); sum += n[2] } END { printf "%.0f", sum }' "$scratch/registry.log"; }

# snippet: what README.md tells people to put into containerd's config.toml, with our folders in it.
snippet() {
    awk '/^```toml$/ { on = 1; next } /^```$/ { if (on && found) exit; on = 0; text = "" } on { text = text $0 "\n"; if (/proxy_plugins.soci\]/) found = 1 } END { printf "%s", text }' \
        "$repository/README.md" |
        sed -e "s|/run/soci-snapshotter-grpc/|$scratch/soci/|" -e "s|/var/lib/soci-snapshotter-grpc|$scratch/soci/root|"
}

# shellcheck disable=SC2120 # quickstart.sh gives no arguments
# start_containerd [LINES]: everything it keeps is in the scratch folder; no CRI. LINES go to the end of its configuration, where the
# `exports` of our plugin are.
start_containerd() {
    local folder=$scratch/containerd
    mkdir -p "$folder/opt"
    cat >"$folder/config.toml" <<EOF
version = 2
root = "$folder/root"
state = "$folder/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$folder/containerd.sock"
[ttrpc]
  address = "$folder/containerd.sock.ttrpc"
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = "$folder/opt"
EOF
    snippet >>"$folder/config.toml"
    printf '%s\n' "$@" >>"$folder/config.toml"
    grep -q 'proxy_plugins.soci' "$folder/config.toml" || die 'README.md has no proxy_plugins.soci snippet'
    start containerd containerd --config "$folder/config.toml"
    wait_for 30 'containerd' ctr -a "$folder/containerd.sock" version
}

# shellcheck disable=SC2120 # quickstart.sh gives no arguments
# start_snapshotter [LOG-LEVEL]: our daemon.
start_snapshotter() {
    mkdir -p "$scratch/soci"
    start soci-snapshotter-grpc soci-snapshotter-grpc --log-level "${1:-debug}" \
        --address "$scratch/soci/soci-snapshotter-grpc.sock" --root "$scratch/soci/root" --config "$scratch/soci/config.toml"
    wait_for 15 'soci-snapshotter-grpc' test -S "$scratch/soci/soci-snapshotter-grpc.sock"
}

# snapshotter_config: what the daemon needs to know about this stack.
snapshotter_config() {
    mkdir -p "$scratch/soci"
    printf '%s\n' '[content_store]' "containerd_address = \"$scratch/containerd/containerd.sock\"" >"$scratch/soci/config.toml"
}
