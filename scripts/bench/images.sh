# shellcheck shell=bash
# Sourced. The images that are measured: one Debian base layer that all have in common, and one layer of packages each.
# The base is minbase as debootstrap leaves it, with the packages that it was made of: half of its bytes are never read, as in most images.

bench_images=(rabbitmq python node postgres)
declare -A bench_packages=(
    [rabbitmq]='rabbitmq-server'
    [python]='python3 python3-numpy python3-scipy python3-pandas'
    [node]='nodejs npm'
    [postgres]='postgresql-15'
)
bench_config='{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","HOME=/root","LANG=C.UTF-8"],"Cmd":["/bin/sh"]}'

# bench_recipe: changes when the images would.
bench_recipe() { cat "$repository"/scripts/lib/{image,debian}.sh "$repository/scripts/bench/images.sh" | sha256sum | cut -c 1-12; }

# bench_archive CACHE IMAGE REFERENCE: sets `archive`; makes it when it is not there yet for this recipe.
bench_archive() {
    local cache=$1 image=$2 reference=$3 folder
    folder=$cache/$(bench_recipe)
    archive=$folder/$image.tar
    if [[ -s $archive ]]; then
        say "the image of $image is in $cache already"
        return
    fi
    mkdir -p "$folder"
    bench_base "$folder"
    # shellcheck disable=SC2086 # one word for each package
    debian_install "$folder/rootfs" "$folder/$image" ${bench_packages[$image]}
    debian_trim "$folder/$image"
    # A cluster made while installing is a program's state, not the program.
    rm -rf -- "$folder/$image"/{etc,var/lib}/postgresql/* "$folder/$image/var/lib/rabbitmq/.erlang.cookie"
    begin_image "$folder/layout"
    cp -- "$folder/base.layer" "$folder/layout/layers"
    ln -- "$folder/base.blob" "$folder/layout/blobs/sha256/$(cut -d ' ' -f 2 "$folder/base.layer")"
    say "packing $image"
    tree_difference "$folder/base" "$folder/$image" | add_paths "$folder/layout" "$folder/$image"
    finish_image "$folder/layout" "$reference" "$bench_config" "$archive"
    rm -rf --one-file-system -- "$folder/$image" "$folder/layout"
}

# bench_base FOLDER: the installation as debootstrap left it (rootfs), trimmed (base), and its layer (base.layer, base.blob).
bench_base() {
    [[ ! -s $1/base.layer ]] || return 0
    debian_rootfs "$1/rootfs"
    rm -rf --one-file-system -- "$1/base"
    cp -a -- "$1/rootfs" "$1/base"
    debian_trim "$1/base"
    begin_image "$1/layout"
    say 'packing the base'
    find "$1/base" -mindepth 1 -printf '%P\n' | add_paths "$1/layout" "$1/base"
    mv -- "$1"/layout/blobs/sha256/* "$1/base.blob"
    mv -- "$1/layout/layers" "$1/base.layer"
}
