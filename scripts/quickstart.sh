#!/usr/bin/env bash
# From a clean clone to a RabbitMQ server that runs while its image is still in the registry. See usage below.
set -Eeuo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/say.sh
. "$repository/scripts/lib/say.sh"
# shellcheck source=scripts/lib/packages.sh
. "$repository/scripts/lib/packages.sh"
# shellcheck source=scripts/lib/scratch.sh
. "$repository/scripts/lib/scratch.sh"
# shellcheck source=scripts/lib/stack.sh
. "$repository/scripts/lib/stack.sh"
# shellcheck source=scripts/lib/image.sh
. "$repository/scripts/lib/image.sh"
# shellcheck source=scripts/lib/debian.sh
. "$repository/scripts/lib/debian.sh"
# shellcheck source=scripts/lib/rabbitmq.sh
. "$repository/scripts/lib/rabbitmq.sh"
# shellcheck source=scripts/lib/walk.sh
. "$repository/scripts/lib/walk.sh"

usage() {
    cat <<EOF
usage: scripts/quickstart.sh [--keep] [--cache DIR] [--binaries DIR]
       scripts/quickstart.sh --stop SCRATCH

Installs what is missing, builds, starts a registry, a containerd and the snapshotter in a scratch folder of their own,
pushes an image of RabbitMQ with its SOCI index, runs it lazily and the ordinary way, and prints how they compare.

  --keep           leave everything running and print how to play with it
  --stop SCRATCH   end what --keep left
  --cache DIR      where the finished image is kept between runs (default: target/quickstart)
  --binaries DIR   use soci and soci-snapshotter-grpc from there instead of building them
EOF
}

keep='' stop='' binaries='' cache=${CARGO_TARGET_DIR:-$repository/target}/quickstart
while (($#)); do
    case $1 in
        --keep) keep=1 ;;
        --stop) stop=${2:?--stop needs the scratch folder}; shift ;;
        --cache) cache=${2:?--cache needs a folder}; shift ;;
        --binaries) binaries=$(cd "${2:?--binaries needs a folder}" && pwd); shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[[ $EUID -eq 0 ]] || die 'run it as root: it installs packages, mounts, and starts containers'
if [[ -n $stop ]]; then
    reopen_scratch "$stop"
    exit 0
fi

open_scratch soci-quickstart
heading '1. What is needed'
install_packages "${packages_build[@]}" "${packages_stack[@]}" "${packages_image[@]}"
if [[ -z $binaries ]]; then
    need_cargo
    say 'building soci and soci-snapshotter-grpc (release)'
    (cd "$repository" && cargo build --release --locked --package soci --package soci-snapshotter-grpc)
    binaries=${CARGO_TARGET_DIR:-$repository/target}/release
fi
PATH=$binaries:$PATH

heading '2. Registry, containerd, snapshotter'
start_registry
start_containerd
snapshotter_config
start_snapshotter
say "registry on $registry (user $registry_user), everything else in $scratch"
export CONTAINERD_ADDRESS=$scratch/containerd/containerd.sock CONTAINERD_NAMESPACE=$namespace
reference=$registry/rabbitmq:3.10
user=$registry_user:$registry_password
typed export "CONTAINERD_ADDRESS=$CONTAINERD_ADDRESS" "CONTAINERD_NAMESPACE=$CONTAINERD_NAMESPACE"

heading "3. An image of RabbitMQ from Debian's packages"
making=$cache
rabbitmq_archive "$cache" "$rabbitmq_name"
making=''
run ctr image import --no-unpack "$archive"
rabbitmq_ports

heading '4. Index it, push it, run it lazily'
walk_push
walk_remove
say 'by the digest of the index'
walk_rpull --soci-index-digest "$index"
lazy_pull_seconds=$walked_seconds lazy_pull_bytes=$walked_bytes
walk_until_up soci run --rm --user "$user" --snapshotter soci --net-host "${ports[@]}" "$reference" rabbitmq
lazy_up_seconds=$walked_seconds lazy_up_bytes=$walked_bytes
walk_remove
say 'once more: the index is found through the registry'
walk_rpull
walk_until_up soci run --rm --snapshotter soci --net-host "${ports[@]}" "$reference" rabbitmq
say "and with containerd's own client"
walk_until_up ctr run --rm --snapshotter soci --net-host "${ports[@]}" "$reference" rabbitmq
walk_remove

heading '5. The same with overlayfs'
walk_measure run soci image pull --user "$user" --platform linux/amd64 "$reference"
full_pull_seconds=$walked_seconds full_pull_bytes=$walked_bytes
walk_until_up soci run --rm --snapshotter overlayfs --net-host "${ports[@]}" "$reference" rabbitmq
full_up_seconds=$walked_seconds full_up_bytes=$walked_bytes
walk_remove

heading 'The two side by side'
printf '\n| | pull | until RabbitMQ is up | together | downloaded |\n|---|---|---|---|---|\n'
walk_row soci "$lazy_pull_seconds" "$lazy_up_seconds" $((lazy_pull_bytes + lazy_up_bytes))
walk_row overlayfs "$full_pull_seconds" "$full_up_seconds" $((full_pull_bytes + full_up_bytes))
printf '\n%s\n' "$(walk_machine)"

if [[ -n $keep ]]; then
    save_scratch
    cat <<EOF

Still running. To play with it:
  export PATH=$binaries:\$PATH CONTAINERD_ADDRESS=$CONTAINERD_ADDRESS CONTAINERD_NAMESPACE=$CONTAINERD_NAMESPACE
  soci image rpull --user $user $reference
  mount | grep fuse.rawBridge
  soci run --rm --snapshotter soci --net-host ${ports[*]}${ports[*]:+ }$reference rabbitmq
  tail -f $scratch/soci-snapshotter-grpc.log
To end it:
  scripts/quickstart.sh --stop $scratch
EOF
else
    heading '6. Nothing stays behind'
fi
