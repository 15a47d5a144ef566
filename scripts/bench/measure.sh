# shellcheck shell=bash
# Sourced. What is done and timed. Every measured value is a line of $results: row, system, number of the run, quantity, value.
# Quantities: pull, command, total, p50, p99 (seconds), bytes (over the link), and of the daemon after that: anon and rss (bytes), cpu
# (seconds since it started), cpu-per-gb.

containers=0 # started so far
output=''    # file with what the last command printed

# seconds_of COMMAND...: sets `took`, seconds with three digits.
took=''
seconds_of() {
    local began
    began=$(now)
    "$@"
    took=$(awk -v a="$began" -v b="$(now)" 'BEGIN { printf "%.3f", b - a }')
}

# execute REFERENCE EXPECTED COMMAND...: in a container; what it prints has to have EXPECTED in it.
execute() {
    local reference=$1 expected=$2
    shift 2
    containers=$((containers + 1))
    output=$scratch/container.out
    in_container "$reference" "bench-$containers" "$@" >"$output" 2>&1 </dev/null || { tail -n 20 "$output" >&2; die "$system: the container failed: $*"; }
    grep -q -- "$expected" "$output" || { tail -n 20 "$output" >&2; die "$system: no '$expected' in what the container printed"; }
}

# record ROW QUANTITY VALUE...: with the daemon's memory and CPU, if the system has one.
record() {
    local row=$1
    shift
    local -a values=("$@")
    local pid=${pid_of[soci-snapshotter-grpc]:-}
    if [[ -n $pid ]]; then
        values+=(anon "$(memory "$pid" RssAnon)" rss "$(memory "$pid" VmRSS)" cpu "$(cpu_seconds "$pid")")
    fi
    say "$row, $system, run $number: ${values[*]}"
    while ((${#values[@]})); do
        printf '%s\t%s\t%s\t%s\t%s\n' "$row" "$system" "$number" "${values[0]}" "${values[1]}" >>"$results"
        values=("${values[@]:2}")
    done
}

memory() { awk -v what="$2:" '$1 == what { print $2 * 1024 }' "/proc/$1/status"; }

cpu_seconds() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.2f", ($12 + $13) / hz }' "/proc/$1/stat"; }

sum() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a + b }'; }

# measure_start ROW IMAGE EXPECTED COMMAND...: cold, pull and run to the end of the command.
measure_start() {
    local row=$1 reference=$link/$2:bench expected=$3 before began pulled
    shift 3
    cold
    before=$(crossed)
    began=$(now)
    seconds_of quietly pull "$reference"
    pulled=$took
    seconds_of execute "$reference" "$expected" "$@"
    record "$row" pull "$pulled" command "$took" total "$(sum "$pulled" "$took")" bytes $(($(crossed) - before))
    keep_logs "$row" "$began"
}

# measure_again ROW IMAGE EXPECTED COMMAND...: run once more, with what is here by now.
measure_again() {
    local row=$1 reference=$link/$2:bench expected=$3 before
    shift 3
    before=$(crossed)
    seconds_of execute "$reference" "$expected" "$@"
    record "$row" total "$took" bytes $(($(crossed) - before))
}

# keep_logs ROW BEGAN: the daemon's log and what crossed the link since, for who wants to know where the time went. The link's log gets
# seconds and bytes since BEGAN (of `now`).
keep_logs() {
    local name=$1-$system-$number
    [[ $system == overlayfs ]] || cp -- "$scratch/soci-snapshotter-grpc.log" "$logs/$name.log"
    awk -v began="$2" '{ at = $1 / 1000 - began; if (at < 0) { down = $2; up = $3; made = $4; next }
        printf "%.3f\t%d\t%d\t%d\n", at, $2 - down, $3 - up, $4 - made }' "$scratch/link.tsv" >"$logs/$name.link.tsv"
}
