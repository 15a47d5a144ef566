# shellcheck shell=bash
# Sourced. containerd of newer Debian releases, beside the machine's own: downloaded and unpacked, not installed.

# 1.7 and 2.1 at the time of writing; the machine's own is Debian 12's 1.6. runc is the machine's: theirs needs a newer C library.
containerd_suites=(trixie forky)
containerd_bin='' # folder with containerd, ctr and the shim, once fetched

# own_mirror: where apt gets this machine's own release from; others of the same distribution are there, too.
own_mirror() {
    # shellcheck source=/dev/null
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")" '$1 == suite { print $2; exit }'
}

# fetch_containerd CACHE SUITE: sets `containerd_bin`; fails with a line that says why.
fetch_containerd() {
    local place new
    place=$(realpath -m -- "$1/$2")
    new=$place.new
    containerd_bin=$place/usr/bin
    if [[ -x $containerd_bin/containerd ]]; then
        say "the containerd of $2 is in $1 already"
        return
    fi
    rm -rf -- "$new" "$place"
    mkdir -p "$new"
    # Once more: the package may have been replaced between the two commands, and networks are what they are.
    download_containerd "$new" "$2" || download_containerd "$new" "$2" ||
        { printf '%s\n' "cannot fetch containerd of Debian $2 from where apt gets this machine's packages:" >&2; cat "$new/log" >&2; return 1; }
    dpkg -x "$new"/containerd_*.deb "$new" && rm -rf -- "$new"/{containerd_*.deb,apt,log} && mv -- "$new" "$place"
}

# download_containerd FOLDER SUITE: the .deb into FOLDER, with an apt whose sources, lists and caches are in FOLDER; output in FOLDER/log.
download_containerd() (
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg apt
    cd "$1" && apt=$PWD/apt && mkdir -p apt/lists/partial apt/cache/archives/partial && exec >log 2>&1 || return
    mirror=$(own_mirror)
    [[ -n $mirror ]] || { echo 'apt has no source for the release of this machine'; return 1; }
    [[ -e $keyring ]] || { echo "there is no $keyring"; return 1; }
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$2" >apt/sources.list
    local -a options=(
        -q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
    )
    # What `update` cannot get is only a warning to it.
    timeout 90 apt-get "${options[@]}" -o APT::Update::Error-Mode=any update && timeout 90 apt-get "${options[@]}" download containerd
)
