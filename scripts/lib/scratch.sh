# shellcheck shell=bash
# Sourced. The scratch folder, the processes started in it, and the way back: whatever happens, nothing is left.
#
# Sets `scratch` (everything that a run makes is below it) and `namespace` (of containerd; not used by anybody else).

scratch='' namespace='' keep=${keep:-}
declare -A pid_of=()       # name -> process
making=''                # folder outside the scratch folder in which an image is being made: the half of it goes, too
declare -a made_before=()  # folders outside the scratch folder that containerd makes and that were not there

# open_scratch NAME: make the folder, and clean up from now on.
open_scratch() {
    local folder
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXX")
    chmod 755 "$scratch"
    namespace=${scratch##*/}
    namespace=${namespace//./-}
    # Fixed in containerd: the shims' sockets, runc's state and the clients' FIFOs live below /run/containerd whatever its
    # configuration says. The ones that are not there yet are ours to remove (rmdir: only if nobody else used them).
    for folder in /run/containerd /run/containerd/s /run/containerd/runc /run/containerd/fifo; do
        [[ -e $folder ]] || made_before=("$folder" "${made_before[@]}")
    done
    trap close_scratch EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# save_scratch: what `reopen_scratch` needs to clean up in another process.
save_scratch() { declare -p pid_of made_before namespace | sed 's/^declare -\([aA]\)/declare -g\1/; s/^declare --/declare -g/' >"$scratch/state"; }

# reopen_scratch FOLDER: take over what `--keep` left, to clean it up on exit.
reopen_scratch() {
    local name
    [[ -f $1/state ]] || die "$1 is no scratch folder of a run with --keep"
    scratch=$(cd "$1" && pwd)
    # shellcheck source=/dev/null
    . "$scratch/state"
    # A number may belong to another process by now: ours have the folder in their arguments.
    for name in "${!pid_of[@]}"; do
        tr '\0' '\n' 2>/dev/null <"/proc/${pid_of[$name]}/cmdline" | grep -qF -- "$scratch/" || unset "pid_of[$name]"
    done
    keep=''
    trap close_scratch EXIT
}

# start NAME COMMAND...: in the background, in a session of its own (Ctrl-C is for the script), output in $scratch/NAME.log.
start() {
    local name=$1
    shift
    setsid "$@" >>"$scratch/$name.log" 2>&1 </dev/null &
    pid_of[$name]=$!
}

# stop NAME [SIGNAL [SECONDS]]: end it and wait; SIGKILL when it does not end in time.
stop() {
    local name=$1 signal=${2:-TERM} left=$((${3:-10} * 10)) pid=${pid_of[$1]:-}
    [[ -n $pid ]] || return 0
    unset "pid_of[$name]"
    kill -s "$signal" "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null && ((left-- > 0)); do sleep 0.1; done
    kill -s KILL "$pid" 2>/dev/null && say "$name did not end by itself: killed"
    wait "$pid" 2>/dev/null || true
}

# processes_below [PATTERN]: processes with the scratch folder in their arguments (and PATTERN in their name).
processes_below() {
    local file first
    for file in /proc/[0-9]*/cmdline; do
        { grep -qF -- "$scratch/" "$file" && IFS= read -r -d '' first <"$file"; } 2>/dev/null || continue
        file=${file%/cmdline}
        [[ ${first##*/} != *"${1:-}"* || ${file##*/} == "$$" ]] || printf '%s\n' "${file##*/}"
    done
}

# end_unserved: where the daemon is gone, readers of its mounts wait for the next one for as long as a keeper has their devices; from now on they get
# an error.
end_unserved() {
    local pid
    ! kill -0 "${pid_of[soci-snapshotter-grpc]:-none}" 2>/dev/null || return 0
    # It runs as /proc/self/exe.
    for pid in $(processes_below exe); do kill -KILL "$pid" 2>/dev/null; done
}

# end_containers: tasks, containers and what their shims left, also when containerd no longer answers.
end_containers() {
    local id pid address
    if [[ -S $scratch/containerd/containerd.sock && -n ${pid_of[containerd]:-} ]]; then
        local -a ctr=(timeout -s KILL 10 ctr -a "$scratch/containerd/containerd.sock" -n "$namespace")
        for id in $("${ctr[@]}" task ls -q 2>/dev/null); do "${ctr[@]}" task rm -f "$id" >/dev/null 2>&1; done
    fi
    local -a addresses=()
    # By their names alone: looking for them would ask mounts that may not answer.
    for address in "$scratch"/containerd/*/io.containerd.runtime.v2.task/*/*/address; do
        [[ ! -f $address ]] || addresses+=("$(<"$address")")
    done
    for pid in $(processes_below containerd-shim); do
        # The container first, then its shim.
        # shellcheck disable=SC2046 # one word for each process
        kill -KILL $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
    done
    for address in "${addresses[@]}"; do rm -f -- "${address#unix://}"; done
    rm -rf --one-file-system "/run/containerd/runc/${namespace:?}"*
}

# unmount_all: every mount below the scratch folder, the last one first; a FUSE server that is gone or hangs cannot hold us up.
unmount_all() {
    local target device
    losetup -nO NAME,BACK-FILE 2>/dev/null | awk -v s="$scratch/" 'index($0, s) { print $1 }' |
        while read -r device; do losetup -d "$device" 2>/dev/null || true; done
    mounts_below | while read -r target; do
        # SIGTERM is ignored by now, here and in what is started from here.
        timeout -s KILL 5 umount -- "$target" 2>/dev/null && continue
        device=$(awk -v t="$target" '$5 == t && / fuse/ { split($3, d, ":"); print d[2] }' /proc/self/mountinfo | tail -n 1)
        [[ -z $device || ! -e /sys/fs/fuse/connections/$device/abort ]] ||
            echo 1 >"/sys/fs/fuse/connections/$device/abort" 2>/dev/null || true
        umount -l -- "$target" 2>/dev/null || true
    done
}

# mounts_below: mount points below the scratch folder, deepest first.
mounts_below() { awk -v s="$scratch/" 'index($5, s) == 1 { print $5 }' /proc/self/mountinfo | tac; }

# close_scratch: runs on every way out.
close_scratch() {
    local status=$? folder
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    if [[ -n $keep && $status -eq 0 ]]; then return; fi
    case $status in 0 | 130 | 143) ;; *) show_logs ;; esac
    say 'cleaning up'
    end_long_running
    allow_services
    end_unserved
    end_containers
    stop containerd TERM
    stop soci-snapshotter-grpc INT
    for folder in "${!pid_of[@]}"; do stop "$folder"; done
    for folder in $(processes_below); do kill -KILL "$folder" 2>/dev/null; done
    unmount_all
    for folder in /sys/fs/cgroup/*/"$namespace"* "/sys/fs/cgroup/$namespace"*; do
        [[ ! -d $folder ]] || find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    [[ -z $making ]] || rm -rf --one-file-system -- "$making"/rootfs "$making"/*.tar.{layout,new}
    [[ -z $(mounts_below) ]] && rm -rf --one-file-system -- "$scratch"
    for folder in "${made_before[@]}"; do [[ ! -d $folder ]] || rmdir -- "$folder" 2>/dev/null; done
    [[ ! -e $scratch ]] || say "could not remove $scratch"
    exit "$status"
}

# show_logs: the last lines of every log, for who wants to know why.
show_logs() {
    local log
    for log in "$scratch"/*.log; do
        [[ -s $log ]] || continue
        printf '%s\n' "--- ${log##*/} (last lines)" >&2
        tail -n 8 "$log" | cut -c 1-400 >&2
    done
}
