#!/usr/bin/env bash
# All checks and tests, with their set-up. See usage below.
set -Eeuo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/say.sh
. "$repository/scripts/lib/say.sh"
# shellcheck source=scripts/lib/packages.sh
. "$repository/scripts/lib/packages.sh"
# shellcheck source=scripts/lib/containerd.sh
. "$repository/scripts/lib/containerd.sh"
# shellcheck source=scripts/lib/scratch.sh
. "$repository/scripts/lib/scratch.sh"

usage() {
    cat <<EOF
usage: scripts/test.sh [check|unit|e2e|long]... [-- TEST-ARGUMENTS...]

  check   rustfmt, clippy with warnings as errors, shellcheck, systemd's verifier
  unit    unit, property and golden tests of all crates, with real FUSE mounts
  e2e     end to end, with a real containerd, runc and registry; then some of it with newer containerds (${containerd_suites[*]})
  long    not among "all": the daemon is killed 1000 times (SOCI_TEST_ROUNDS) under readers and starting containers, with each front end, on the
          containerd in PATH; about an hour each. Prints the longest stall. Then 200 images are pulled, run and removed, and for five minutes
          (SOCI_TEST_STRESS_SECONDS) containerd collects every second while images come and go, and the registry hangs
Without a name: all of them but the last. TEST-ARGUMENTS go to the tests (a name to select by, --nocapture); the newer containerds are left out then.
EOF
}

steps=()
while (($#)); do
    case $1 in
        check | unit | e2e | long) steps+=("$1") ;;
        --) shift; break ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((${#steps[@]})) || steps=(check unit e2e)
[[ $EUID -eq 0 ]] || die 'run it as root: it mounts and starts containers'

# The steps are called where a failure is counted: `set -e` does not hold inside them.
check() {
    cargo fmt --all --check &&
        say 'clippy' && cargo clippy --workspace --all-targets --locked -- --deny warnings &&
        say 'shellcheck' && shellcheck -x scripts/*.sh scripts/vm/*.sh .ci/run &&
        say 'units' && units
}

# What systemd has to say about the units, with a program that is there in the place of ours; an older one does not know one key.
units() {
    local said folder=$scratch/units
    mkdir -p "$folder"
    cp scripts/soci-snapshotter.socket "$folder"
    sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' scripts/soci-snapshotter.service >"$folder/soci-snapshotter.service"
    said=$(systemd-analyze verify "$folder"/soci-snapshotter.* 2>&1) || { printf '%s\n' "$said" >&2; return 1; }
    said=$(grep -v "Unknown key.* 'FileDescriptorStorePreserve'" <<<"$said") || return 0
    printf '%s\n' "$said" >&2
    return 1
}

# Tests of the crates use the programs, too.
programs() { cargo build --locked --package soci --package soci-snapshotter-grpc; }

unit() { programs && cargo test --workspace --exclude soci-tests --locked --no-fail-fast -- "$@"; }

# What is asked of every containerd: lazy pulls and runs, namespaces, removal, restarts, clients that know nothing of us, containers that start while the
# daemon is killed.
every_containerd=(lazy_run namespaces removal restart::containerd foreign survive::killed_again)
# Of the newest also: the daemon dies at each step, and at random moments.
newest_containerd=(failpoints killed::)

e2e() {
    local suite status=0
    local -a tests
    programs && suites "$@" || status=1
    (($# == 0)) || return "$status"
    for suite in "${containerd_suites[@]}"; do
        fetch_containerd "${CARGO_TARGET_DIR:-$repository/target}/containerd" "$suite" || { status=1; continue; }
        heading "e2e with $("$containerd_bin/containerd" --version | cut -d ' ' -f 1,3)"
        tests=("${every_containerd[@]}")
        [[ $suite != "${containerd_suites[-1]}" ]] || tests+=("${newest_containerd[@]}")
        PATH=$containerd_bin:$PATH suites "${tests[@]}" || { say "failed with the containerd of Debian $suite"; status=1; }
    done
    return "$status"
}

long() {
    local status=0
    programs || return
    SOCI_TEST_ROUNDS=${SOCI_TEST_ROUNDS:-1000} suites --ignored --nocapture survive::killed_for_a_long_time "$@" || status=1
    SOCI_TEST_ROUNDS=200 SOCI_TEST_STRESS_SECONDS=${SOCI_TEST_STRESS_SECONDS:-300} suites --nocapture rounds:: stress:: "$@" || status=1
    return "$status"
}

# Two stacks at a time: each test has a registry, a containerd and a daemon of its own.
suites() { RUST_TEST_THREADS=${RUST_TEST_THREADS:-2} cargo test --package soci-tests --locked --no-fail-fast -- "$@"; }

open_scratch soci-test
# The harness puts its folders and names below these, so that what an interrupted test leaves is found.
export TMPDIR=$scratch SOCI_TEST_NAMESPACE=$namespace
heading 'What is needed'
install_packages "${packages_build[@]}" "${packages_stack[@]}" "${packages_image[@]}" "${packages_tests[@]}"
need_cargo
need_components rustfmt clippy
cd "$repository"
failed=()
for step in "${steps[@]}"; do
    heading "$step"
    "$step" "$@" || failed+=("$step")
done
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
say "passed: ${steps[*]}"
