# shellcheck shell=bash
# Sourced. One start, looked at while it goes on: what came, and why. Not among the starts that are measured: looking costs time.

timeline_title=''

# has_status: does `soci` say how far layers are?
has_status() { soci image status --help >/dev/null 2>&1; }

# draw_timeline: python with the kernel front end, until everything is here; the report makes a picture of it.
draw_timeline() {
    local reference=$link/python:bench began sampler
    become soci
    number=0
    cold
    quietly pull "$reference"
    began=$(now)
    sample_status "$began" >"$logs/timeline.samples" &
    sampler=$!
    execute "$reference" '^pandas [0-9]' python3 -c 'import numpy, scipy.stats, pandas; print("pandas", pandas.__version__)'
    timeline_title="python: bytes after the pull, by the reason why they came; the command ended after $(since "$began") s"
    until_complete
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null || true
    soci-bench timeline "$logs/timeline.samples" >"$report/timeline.tsv"
}

# sample_status BEGAN: again and again a line: seconds since BEGAN, a tab, and the daemon's answer.
sample_status() {
    local status
    while status=$(soci image status --json 2>/dev/null | tr -d '\n'); do
        printf '%s\t%s\n' "$(awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.3f", b - a }')" "$status"
        sleep 0.1
    done
}

# until_complete: every layer is here and checked, and containers have left FUSE, as far as there is anything that does that; else until
# nothing moves.
until_complete() {
    local deadline=$((SECONDS + 300)) rest=3
    if [[ $system == soci* ]] && has_status; then
        # Checking what has come takes its time, too.
        while ! all_settled && ((SECONDS < deadline)) && ((rest > 0)); do
            ! silent || rest=$((rest - 1))
        done
        all_settled || say "$system: not every layer is complete: $(soci image status --json | grep -e '"state"' -e '"front_end"' | tr -d ' \n')"
        return
    fi
    until_silent
}

# until_silent: nothing moves any more.
until_silent() {
    local deadline=$((SECONDS + 300))
    until ((SECONDS >= deadline)) || silent; do :; done
}

# until_files: new containers get layers' files without loop devices, where the kernel can. They share what is cached of a loop device for a while before that.
until_files() {
    local deadline=$((SECONDS + 120))
    [[ $system == soci && $(printf '6.12\n%s\n' "$(uname -r)" | sort -V | head -n 1) == 6.12 ]] || return 0
    while grep -q " $scratch/soci/[^ ]*/erofs .* - erofs /dev/loop" /proc/self/mountinfo; do
        ((SECONDS < deadline)) || die "$system: complete layers keep their loop devices"
        sleep 1
    done
}

all_settled() {
    local status
    status=$(soci image status --json) || return
    [[ $status != *'"state": "incomplete"'* && $status != *'"state": "unchecked"'* && $status != *'"front_end": "kernel over fuse"'* ]]
}

# silent: nothing has come over the link for three seconds.
silent() {
    local before
    before=$(crossed)
    sleep 3
    (($(crossed) - before < 4096))
}
