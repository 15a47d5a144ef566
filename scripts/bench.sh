#!/usr/bin/env bash
# How fast a container starts from an image that is not here, lazily and the ordinary way. See usage below.
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
# shellcheck source=scripts/lib/stack.sh
. "$repository/scripts/lib/stack.sh"
# shellcheck source=scripts/lib/image.sh
. "$repository/scripts/lib/image.sh"
# shellcheck source=scripts/lib/debian.sh
. "$repository/scripts/lib/debian.sh"
# shellcheck source=scripts/bench/images.sh
. "$repository/scripts/bench/images.sh"
# shellcheck source=scripts/bench/synthetic.sh
. "$repository/scripts/bench/synthetic.sh"
# shellcheck source=scripts/bench/stack.sh
. "$repository/scripts/bench/stack.sh"
# shellcheck source=scripts/bench/peer.sh
. "$repository/scripts/bench/peer.sh"
# shellcheck source=scripts/bench/measure.sh
. "$repository/scripts/bench/measure.sh"
# shellcheck source=scripts/bench/timeline.sh
. "$repository/scripts/bench/timeline.sh"
# shellcheck source=scripts/bench/rows.sh
. "$repository/scripts/bench/rows.sh"

usage() {
    cat <<END
usage: scripts/bench.sh [--runs N] [--only ROW]... [--quick] [--system SYSTEM]... [--output DIR]
                        [--round-trip MS] [--megabits N] [--containerd SUITE] [--cache DIR] [--binaries DIR]

Measures cold starts, reading, memory and more, for containerd's overlayfs and for this project, alternating, with a registry behind
a link of a given length and width, all in a scratch folder. Prints the medians as a Markdown table and draws charts.

  --runs N            of each row and system (default: 5)
  --only ROW          one of: ${rows[*]} (may be repeated; default: all)
  --quick             one run, and no more than 10^5 files
  --system SYSTEM     one of: overlayfs soci soci-fuse upstream (may be repeated; default: all that are there)
  --output DIR        where results.tsv, table.md, the charts and logs go (default: only the table, printed)
  --round-trip MS     of the link (default: 20)
  --megabits N        of the link (default: 400)
  --containerd SUITE  the containerd of a Debian release (default: forky), or "installed"
  --cache DIR         where images are kept between runs (default: target/bench)
  --binaries DIR      use soci, soci-snapshotter-grpc and soci-bench from there instead of building them

If SOCI_PEER_BIN names a folder with the two programs of the Go project, they are measured, too; SOCI_PEER_PULL is the
command that pulls an image for them; the image's name is put behind it (default: nerdctl pull).
END
}

runs=5 round_trip=20 megabits=400 suite=forky binaries='' output_folder=''
target=${CARGO_TARGET_DIR:-$repository/target}
cache=$target/bench
selected=() systems=() file_counts=(1000 10000 100000 1000000)
while (($#)); do
    case $1 in
        --runs) runs=${2:?--runs needs a number}; shift ;;
        --only) selected+=("${2:?--only needs a row}"); shift ;;
        --quick) runs=1 file_counts=(1000 10000 100000) ;;
        --system) systems+=("${2:?--system needs a name}"); shift ;;
        --output) output_folder=$(mkdir -p "${2:?--output needs a folder}" && cd "$2" && pwd); shift ;;
        --round-trip) round_trip=${2:?--round-trip needs milliseconds}; shift ;;
        --megabits) megabits=${2:?--megabits needs a number}; shift ;;
        --containerd) suite=${2:?--containerd needs a Debian release}; shift ;;
        --cache) cache=$(realpath -m -- "${2:?--cache needs a folder}"); shift ;;
        --binaries) binaries=$(cd "${2:?--binaries needs a folder}" && pwd); shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
for row in "${selected[@]}"; do [[ " ${rows[*]} " == *" $row "* ]] || die "no row $row: there are ${rows[*]}"; done
((${#selected[@]})) || selected=("${rows[@]}")
[[ $EUID -eq 0 ]] || die 'run it as root: it installs packages, mounts, starts containers and empties caches'

open_scratch soci-bench
report=$scratch/report results=$scratch/report/results.tsv logs=$scratch/report/logs
mkdir -p "$logs" "$report"
heading 'What is needed'
install_packages "${packages_build[@]}" "${packages_stack[@]}" "${packages_image[@]}" "${packages_bench[@]}"
given=$binaries
if [[ -z $binaries ]]; then
    need_cargo
    say 'building soci, soci-snapshotter-grpc and soci-bench (release)'
    (cd "$repository" && cargo build --release --locked --package soci --package soci-snapshotter-grpc --package soci-tests --bins)
    binaries=$target/release
fi
PATH=$binaries:$PATH
if [[ $suite != installed ]]; then
    fetch_containerd "$target/containerd" "$suite"
    PATH=$containerd_bin:$PATH
fi
if ((${#systems[@]} == 0)); then
    systems=(overlayfs soci)
    ! has_kernel_front_end || systems+=(soci-fuse)
    [[ -z ${SOCI_PEER_BIN:-} ]] || systems+=(upstream)
fi

heading 'Registry, link, containerd'
start_slow_registry
start_containerd "${lazy_transfer[@]}"
export CONTAINERD_ADDRESS=$scratch/containerd/containerd.sock CONTAINERD_NAMESPACE=$namespace
say "registry behind a link of $round_trip ms and $megabits Mbit/s"

heading 'Images'
declare -A published=()
for row in "${selected[@]}"; do
    for image in $(images_for "$row"); do
        [[ -z ${published[$image]:-} ]] || continue
        published[$image]=1
        image_archive "$cache" "$image"
        publish "$archive" "$image"
    done
done

# about: where and of what the figures are.
about() {
    local commit
    commit="Commit $(git -c safe.directory="*" -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)"
    [[ -z $given ]] || commit='Programs given with --binaries'
    local upstream=''
    [[ " ${systems[*]} " != *' upstream '* ]] || upstream="; upstream: $(peer_version)"
    printf '%s; registry with TLS behind a link of %s ms and %s Mbit/s; %s × %s, %s GiB, Linux %s, containerd %s; overlayfs: ctr with overlayfs; soci-fuse: ours without the kernel front end%s.' \
        "$commit" "$round_trip" "$megabits" "$(nproc)" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" \
        "$(awk '/MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)" "$(uname -r)" "$(containerd --version | awk '{ print $3 }')" "$upstream"
}

heading 'Measuring'
for ((number = 1; number <= runs; number++)); do
    for row in "${selected[@]}"; do
        for each in "${systems[@]}"; do
            become "$each"
            "row_$row"
        done
    done
    heading "After run $number of $runs"
    soci-bench report "$report" --about "$(about)"
done
if [[ -n $output_folder && " ${selected[*]} " == *' python '* && " ${systems[*]} " == *' soci '* ]] && has_status; then
    heading 'One start, by the reason why bytes came'
    draw_timeline
    soci-bench report "$report" --about "$(about)" --timeline "$timeline_title" >/dev/null
fi
[[ -z $output_folder ]] || { cp -r -- "$report"/. "$output_folder/" && say "written to $output_folder"; }
