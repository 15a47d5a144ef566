# shellcheck shell=bash
# Sourced. The rows: what is run in which image. Each function is called for each run and each system.

rows=(rabbitmq python node postgres read ten mounts latency)
declare -A images_of=([rabbitmq]=rabbitmq [python]=python [node]=node [postgres]=postgres [read]=python [ten]=python)

row_rabbitmq() {
    # shellcheck disable=SC2016 # Erlang
    measure_start rabbitmq rabbitmq '^OTP [0-9]' erl -noshell -eval 'io:format("OTP ~s~n", [erlang:system_info(otp_release)]), halt().'
}

row_python() { measure_start python python '^pandas [0-9]' python3 -c 'import numpy, scipy.stats, pandas; print("pandas", pandas.__version__)'; }

row_node() { measure_start node node '^v[0-9]' node --version; }

row_postgres() {
    # shellcheck disable=SC2016 # for the shell in the container
    measure_start postgres postgres '"the answer is 42"' setpriv --reuid=postgres --regid=postgres --clear-groups /bin/sh -ec '
        PATH=/usr/lib/postgresql/15/bin:$PATH
        initdb --pgdata=/tmp/data --no-sync
        echo "select '"'the answer is ' || 6 * 7"';" | postgres --single -D /tmp/data postgres'
}

# Every file of the largest image: at once, again, after everything has arrived and the caches are cold, and only its names.
row_read() {
    local -a read_all=(/bin/sh -c 'tar --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./run -C / -cf - . | wc -c')
    local -a find_all=(/bin/sh -c "find / -xdev -printf '%s %p\n' | wc -l")
    measure_start read python '^[0-9]' "${read_all[@]}"
    same_for_all bytes
    [[ $system == overlayfs ]] || record_cpu read "$(<"$output")"
    measure_again read-warm python '^[0-9]' "${read_all[@]}"
    execute "$link/python:bench" '^[0-9]' "${find_all[@]}"
    same_for_all files
    # It takes less than half a second, and the containers around it no less: one of them says little.
    for _ in {1..5}; do measure_again find python '^[0-9]' "${find_all[@]}"; done
    until_complete
    until_files
    drop_caches
    measure_again read-complete python '^[0-9]' "${read_all[@]}"
    same_for_all bytes
}

# record_cpu ROW BYTES: of the daemon since it started, for a billion bytes read.
record_cpu() { record "$1" cpu-per-gb "$(awk -v s="$(cpu_seconds "${pid_of[soci-snapshotter-grpc]}")" -v n="$2" 'BEGIN { printf "%.2f", s / n * 1e9 }')"; }

# same_for_all WHAT: the last number printed is the same whoever shows the image.
declare -A seen=()
same_for_all() {
    local number
    number=$(<"$output")
    [[ ${seen[$1]:=$number} == "$number" ]] || die "$system: $number $1 instead of ${seen[$1]}"
}

# Ten containers of one image at once, and what comes over the link for them and for one. Without the background, which would bring everything in either case.
row_ten() {
    local -a command=(python3 -c 'import numpy, scipy.stats, pandas; print("pandas", pandas.__version__)')
    local reference=$link/python:bench before daemon_config=$'[background_fetch]\ndisable = true'
    for count in 1 10; do
        cold
        before=$(crossed)
        seconds_of quietly pull "$reference"
        local pulled=$took
        seconds_of at_once "$count" "$reference" "${command[@]}"
        local run=$took
        until_silent
        record "containers-$count" pull "$pulled" command "$run" bytes $(($(crossed) - before))
    done
}

# at_once COUNT REFERENCE COMMAND...: that many containers; all have to succeed.
at_once() {
    local count=$1 reference=$2 pid
    local -a pids=()
    shift 2
    for ((; count > 0; count--)); do
        containers=$((containers + 1))
        in_container "$reference" "bench-$containers" "$@" >"$scratch/at-once.$count.out" 2>&1 </dev/null &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || { cat "$scratch"/at-once.*.out >&2; die "$system: one of the containers failed"; }; done
}

# A layer with ever more files: pulled; mounted, made from its zTOC and from the file that is there then, by a daemon that starts again.
row_mounts() {
    local files began pulled log_level=debug daemon_config=''
    # No layer file is made ahead of its Prepare: that would be time that no mount is seen to take.
    [[ $system != soci* ]] || daemon_config=$'[limits]\nlayers_ahead = 0'
    for files in "${file_counts[@]}"; do
        # Unpacking and removing a million files takes minutes, and nobody is compared with it.
        [[ $system != overlayfs ]] || ((files < 1000000)) || continue
        cold
        began=$(now)
        seconds_of quietly pull "$link/files-$files:bench"
        pulled=$took
        if [[ $system != soci* ]]; then
            record "files-$files" pull "$pulled"
            continue
        fi
        record "files-$files" pull "$pulled" mount "$(mount_seconds "$files")"
        keep_logs "files-$files" "$began"
        stop soci-snapshotter-grpc INT 30
        : >"$scratch/soci-snapshotter-grpc.log"
        start_snapshotter debug
        record "files-$files" mount-again "$(mount_seconds "$files")"
    done
}

# mount_seconds FILES: from the daemon's log, how long its layer with at least so many files took: layer file, FUSE, and what is above it.
mount_seconds() {
    wait_for 30 'the daemon to say how long the mount took' mount_said "$1"
    mount_said "$1"
}

mount_said() {
    awk -v files="$1" '
        function number(name) { return match($0, "\"" name "\":[0-9]+") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 : 0 }
        /"layer mounted"/ && number("inodes") >= files { said = number("file-usec") + number("fuse-usec") + number("kernel-usec") }
        END { if (said == "") exit 1; printf "%.4f", said / 1e6 }' "$scratch/soci-snapshotter-grpc.log"
}

# One page of each span of a file that cannot be compressed, in no order, by one reader and by four.
row_latency() {
    local readers pid
    [[ $system != overlayfs ]] || return 0
    for readers in 1 4; do
        cold
        quietly pull "$link/large:bench"
        containers=$((containers + 1))
        quietly run_detached "$link/large:bench" "bench-$containers" sleep 1000
        pid=$(ctr task ls | awk -v id="bench-$containers" '$1 == id { print $2 }')
        soci-bench probe --readers "$readers" "/proc/$pid/root/large" >"$scratch/probe.out"
        # shellcheck disable=SC2046 # one word for each number
        record "latency-$readers" $(<"$scratch/probe.out")
        quietly ctr task rm --force "bench-$containers"
        quietly ctr container rm "bench-$containers"
    done
}

run_detached() { if [[ $system == upstream ]]; then ctr run --detach --snapshotter soci "$@"; else soci run --detach --snapshotter soci "$@"; fi; }
