# shellcheck shell=bash
# Sourced. The steps of the getting-started path, as a user would type them, with their checks and measurements.

rabbitmq_name=docker.io/library/rabbitmq:3.10
index=''                          # digest of the index, once it is made
walked_seconds='' walked_bytes='' # of the last measured step

# walk_measure COMMAND...: seconds and bytes from the registry.
walk_measure() {
    local began before
    before=$(downloaded)
    began=$(now)
    "$@"
    walked_seconds=$(since "$began")
    sleep 0.2 # the registry writes its log line after the last byte
    walked_bytes=$(($(downloaded) - before))
    say "$walked_seconds s, $(human "$walked_bytes") from the registry"
}

# walk_push: image and index into the registry.
walk_push() {
    local lazy skipped ztoc
    run soci image tag "$rabbitmq_name" "$reference"
    run soci image push --user "$user" --platform linux/amd64 "$reference"
    run soci create "$reference" | tee "$scratch/create.out"
    lazy=$(grep -c '^layer sha256:[0-9a-f]* -> ztoc sha256:' "$scratch/create.out" || true)
    skipped=$(grep -c '^layer sha256:[0-9a-f]* -> ztoc skipped' "$scratch/create.out" || true)
    [[ $lazy -eq 3 && $skipped -eq 7 ]] || die "soci create: $lazy layers with a ztoc and $skipped without, not 3 and 7"
    run soci index list
    index=$(soci index list --quiet --ref "$reference" | head -n 1)
    [[ $index == sha256:* ]] || die 'soci index list: no index'
    run soci index info "$index"
    ztoc=$(sed -n 's/^layer .* -> ztoc \(sha256:[0-9a-f]*\).*/\1/p' "$scratch/create.out" | head -n 1)
    run soci ztoc info "$ztoc" >"$scratch/ztoc.out"
    # The command line, then what is of interest of tens of thousands of lines.
    head -n 40 "$scratch/ztoc.out"
    say "… $(wc -l <"$scratch/ztoc.out") lines"
    run soci push --user "$user" "$reference"
    run soci plugins ls id==soci
}

# walk_remove: images and snapshots away, caches cold.
walk_remove() {
    local -a names
    mapfile -t names < <(soci image ls -q)
    run soci image rm --sync "${names[@]}"
    wait_for 30 'the snapshots of removed images' no_mounts
    prompt 'sync; echo 3 >/proc/sys/vm/drop_caches'
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

no_mounts() { [[ -z $(fuse_mounts) ]]; }

# fuse_mounts: what `mount | grep fuse` shows of the scratch folder.
fuse_mounts() { mount | grep fuse | grep -F " on $scratch/" || true; }

# walk_rpull [--soci-index-digest D]: and look at what is mounted.
walk_rpull() {
    local lines mounts
    walk_measure walk_rpull_run "$@"
    lines=$(grep -c '^fetching sha256:........\.\.\. application/vnd.docker.image.rootfs.diff.tar.gzip$' "$scratch/rpull.out" || true)
    [[ $lines -eq 7 ]] || die "rpull fetched $lines layers, not 7"
    prompt 'mount | grep fuse'
    mount | grep fuse || true
    mounts=$(fuse_mounts | grep -c "/snapshotter/snapshots/[^/]*/fs type fuse.rawBridge (rw,nodev,relatime,user_id=0,group_id=0,allow_other)$" || true)
    [[ $mounts -eq 3 && $(fuse_mounts | wc -l) -eq 3 ]] || die "$mounts lazily mounted layers, not 3"
}

walk_rpull_run() { run soci image rpull --user "$user" "$@" "$reference" | tee "$scratch/rpull.out"; }

# walk_until_up COMMAND...: run the server until it says that it is up, then end it as Ctrl-C would.
walk_until_up() {
    typed "$@"
    : >"$scratch/server.out"
    setsid "$@" >"$scratch/server.out" 2>&1 </dev/null &
    pid_of[server]=$!
    walk_measure server_up
    grep -E 'Server startup complete|^soci: ' "$scratch/server.out" || true
    stop server INT 40
    # A container of the same name is next: --rm has to have removed this one.
    wait_for 20 'the end of the container' no_containers
}

server_up() {
    local deadline=$((SECONDS + 180))
    until grep -q 'Server startup complete' "$scratch/server.out"; do
        kill -0 "${pid_of[server]}" 2>/dev/null || { cat "$scratch/server.out" >&2; die 'the server ended before it was up'; }
        ((SECONDS < deadline)) || { cat "$scratch/server.out" >&2; die 'the server is not up after 3 minutes'; }
        sleep 0.05
    done
}

no_containers() { [[ -z $(ctr container ls -q) ]]; }

# walk_row NAME PULL UP BYTES: a row of the table.
walk_row() { printf '| %s | %s s | %s s | %s s | %s |\n' "$1" "$2" "$3" "$(awk -v a="$2" -v b="$3" 'BEGIN { printf "%.1f", a + b }')" "$(human "$4")"; }

# walk_machine: where the figures come from.
walk_machine() {
    local commit
    commit=$(git -c safe.directory="*" -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)
    printf 'Commit %s, registry on loopback; %s × %s, %s GiB, Linux %s, containerd %s.' "$commit" "$(nproc)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)" \
        "$(uname -r)" "$(containerd --version | awk '{ print $3 }')"
}
