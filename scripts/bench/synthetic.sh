# shellcheck shell=bash
# Sourced. Images of one layer that no package makes: very many files (`files-N`), and one file that cannot be compressed (`large`).

large_bytes=$((512 << 20))

# images_for ROW: the names of the images that it needs.
images_for() {
    local files
    case $1 in
        mounts) for files in "${file_counts[@]}"; do printf 'files-%s\n' "$files"; done ;;
        latency) printf 'large\n' ;;
        *) printf '%s\n' "${images_of[$1]}" ;;
    esac
}

# image_archive CACHE IMAGE: sets `archive`, whichever kind of image it is.
image_archive() {
    case $2 in
        files-* | large) synthetic_archive "$@" ;;
        *) bench_archive "$@" "docker.io/library/$2:bench" ;;
    esac
}

# synthetic_archive CACHE IMAGE: sets `archive`; makes it when it is not there yet.
synthetic_archive() {
    local folder
    folder=$1/synthetic-$(cat "$repository"/scripts/lib/image.sh "$repository"/scripts/bench/synthetic.sh "$repository"/tests/src/bench/files.rs | sha256sum | cut -c 1-12)
    archive=$folder/$2.tar
    [[ ! -s $archive ]] || return 0
    mkdir -p "$folder"
    begin_image "$folder/layout"
    say "making the image $2"
    # With a shell to run, next to what is measured.
    mkdir -p "$folder/shell"/{bin,proc,sys,dev,run,tmp}
    cp /bin/busybox "$folder/shell/bin/busybox"
    ln -sf busybox "$folder/shell/bin/sleep"
    find "$folder/shell" -mindepth 1 -printf '%P\n' | add_paths "$folder/layout" "$folder/shell"
    case $2 in
        files-*) soci-bench files --count "${2#files-}" ;;
        large) soci-bench files --count 1 --name large --bytes "$large_bytes" ;;
    esac | add_layer "$folder/layout"
    finish_image "$folder/layout" "docker.io/library/$2:bench" "$bench_config" "$archive"
    rm -rf -- "$folder/layout" "$folder/shell"
}
