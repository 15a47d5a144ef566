# shellcheck shell=bash
# Sourced. What the scripts print, and how they wait.

# Colours only for a person.
if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

# say TEXT...: one line of progress, with the seconds since the script began.
say() { printf '%s[%4ds]%s %s\n' "$dim" "$SECONDS" "$plain" "$*"; }

# heading TEXT...: a step begins.
heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

# die TEXT...: one line on stderr, then out (the traps clean up).
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# now: seconds with three digits behind the point, for measuring.
now() { date +%s.%3N; }

# since START: seconds from START (of `now`) until now, one digit behind the point.
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# human BYTES: MiB, one digit behind the point.
human() { awk -v n="$1" 'BEGIN { printf "%.1f MiB", n / 1048576 }'; }

# typed COMMAND...: the command as a user would type it, quoted only where the shell needs it.
typed() {
    local word line=''
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@%+,^-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
    done
    prompt "${line# }"
}

# prompt LINE: a command line, as it stands.
prompt() { printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"; }

# run COMMAND...: print the command, then run it.
run() { typed "$@"; "$@"; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; dies when the time is over.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || die "$what: not ready in time"
        sleep 0.1
    done
}

long_running='' # process group of `with_dots`

# end_long_running: for the traps.
end_long_running() {
    [[ -n $long_running ]] || return 0
    kill -TERM -- "-$long_running" 2>/dev/null && wait "$long_running" 2>/dev/null
    long_running=''
}

# with_dots WHAT COMMAND...: run something long and quiet; its output goes to a log file, shown when it fails.
with_dots() {
    local what=$1 log pid status=0 began=$SECONDS
    shift
    log=$(mktemp "${scratch:-${TMPDIR:-/tmp}}/output.XXXXXX")
    say "$what …"
    set -m # a process group of its own, so that all of it can be ended
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    set +m
    long_running=$pid
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        (((SECONDS - began) % 15 != 14)) || say "$what … $(tail -n 1 "$log" | cut -c 1-80)"
    done
    wait "$pid" || status=$?
    long_running=''
    ((status == 0)) || { tail -n 30 "$log" >&2; rm -f "$log"; die "$what failed"; }
    rm -f "$log"
}
