#!/usr/bin/env bash
# usage: scripts/install.sh [PREFIX]
# Builds soci and soci-snapshotter-grpc (release) and installs them in PREFIX/bin (default /usr/local).
set -Eeuo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/say.sh
. "$repository/scripts/lib/say.sh"
# shellcheck source=scripts/lib/packages.sh
. "$repository/scripts/lib/packages.sh"

case ${1:-} in -*) sed -n '2,3s/^# //p' "$0"; exit 0 ;; esac
prefix=${1:-/usr/local}
trap 'end_long_running; allow_services' EXIT
trap 'exit 130' INT TERM
install_packages "${packages_build[@]}"
need_cargo
(cd "$repository" && cargo build --release --locked --package soci --package soci-snapshotter-grpc)
mkdir -p "$prefix/bin"
for program in soci soci-snapshotter-grpc; do
    # A new file under the old name: a running daemon keeps its own.
    install -m 755 "${CARGO_TARGET_DIR:-$repository/target}/release/$program" "$prefix/bin/$program.new"
    # A backtrace keeps the names of functions; the line numbers would be nine tenths of the file.
    strip --strip-debug "$prefix/bin/$program.new"
    mv -f -- "$prefix/bin/$program.new" "$prefix/bin/$program"
    say "$prefix/bin/$program: $("$prefix/bin/$program" --version)"
done
