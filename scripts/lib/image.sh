# shellcheck shell=bash
# Sourced. Image layers and an OCI-layout archive out of a folder, with tar, gzip and sha256sum alone.
# The media types are docker's; `ctr image import` keeps them.

# Everything younger than this (files that the installation made) gets this time, so that the same packages give the same bytes.
image_epoch=1735689600
image_date=2025-01-01T00:00:00Z

# begin_image FOLDER: an empty layout.
begin_image() {
    rm -rf -- "$1"
    mkdir -p "$1/blobs/sha256"
    : >"$1/layers"
}

# store_blob FOLDER FILE: move the file into the layout; prints its digest (hex) and size.
store_blob() {
    local hex size
    hex=$(sha256sum <"$2" | cut -d ' ' -f 1)
    size=$(stat -c %s "$2")
    mv -- "$2" "$1/blobs/sha256/$hex"
    printf '%s %s\n' "$hex" "$size"
}

# add_layer FOLDER: the tar on stdin becomes the next gzip layer.
add_layer() {
    local diff_id packer
    cat >"$1/new.tar"
    gzip -n -6 <"$1/new.tar" >"$1/new.gz" &
    packer=$!
    diff_id=$(sha256sum <"$1/new.tar" | cut -d ' ' -f 1)
    wait "$packer"
    rm -- "$1/new.tar"
    printf '%s %s\n' "$diff_id" "$(store_blob "$1" "$1/new.gz")" >>"$1/layers"
}

# add_paths FOLDER ROOT: the paths on stdin (relative to ROOT, one a line), with the folders above them, become the next layer.
add_paths() {
    awk 'BEGIN { FS = OFS = "/" } { n = split($0, p); s = ""; for (i = 1; i <= n; i++) { s = s (i > 1 ? "/" : "") p[i]; print s } }' |
        LC_ALL=C sort -u |
        tar --create --file=- --directory="$2" --no-recursion --verbatim-files-from --files-from=- \
            --format=posix --pax-option='exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime' \
            --numeric-owner --xattrs --mtime="@$image_epoch" --clamp-mtime |
        add_layer "$1"
}

# finish_image FOLDER REFERENCE CONFIG ARCHIVE: CONFIG is the JSON of the image's "config" object.
finish_image() {
    local folder=$1 reference=$2 config=$3 archive=$4 diff_id hex size diff_ids='' layers='' config_blob manifest_blob
    while read -r diff_id hex size; do
        diff_ids+=",\"sha256:$diff_id\""
        layers+=",{\"mediaType\":\"application/vnd.docker.image.rootfs.diff.tar.gzip\",\"size\":$size,\"digest\":\"sha256:$hex\"}"
    done <"$folder/layers"
    printf '{"architecture":"amd64","config":%s,"created":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$config" "$image_date" "${diff_ids#,}" >"$folder/new"
    config_blob=$(store_blob "$folder" "$folder/new")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":%s,"digest":"sha256:%s"},"layers":[%s]}' \
        "${config_blob#* }" "${config_blob% *}" "${layers#,}" >"$folder/new"
    manifest_blob=$(store_blob "$folder" "$folder/new")
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":%s,"digest":"sha256:%s","platform":{"architecture":"amd64","os":"linux"},"annotations":{"io.containerd.image.name":"%s"}}]}' \
        "${manifest_blob#* }" "${manifest_blob% *}" "$reference" >"$folder/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$folder/oci-layout"
    tar --create --file="$archive.new" --directory="$folder" oci-layout index.json blobs
    mv -- "$archive.new" "$archive"
}
