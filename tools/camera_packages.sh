#!/usr/bin/env bash
# Installs the packages of Debian or Ubuntu that tests/cameras needs: Aravis and its fake camera,
# GStreamer's RTSP server, and a C compiler. Does nothing where they are there.
set -euo pipefail

packages=(
    # GigE Vision and USB3 Vision cameras: what a station needs
    gir1.2-aravis-0.8 python3-gi
    # a fake one
    aravis-tools
    # an RTSP server, and what encodes and packs its pictures
    gir1.2-gst-rtsp-server-1.0
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
    # a compiler, for a clock that jumps
    gcc libc6-dev
)

if ! command -v apt-get >/dev/null; then
    echo "no apt-get on this machine: tests/cameras needs Debian or Ubuntu, and there" \
        "${packages[*]}" >&2
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=""
if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "not root, and no sudo on this machine; as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "== installing ${missing[*]}"
$as_root apt-get update -q
$as_root apt-get install -qy --no-install-recommends "${missing[@]}"
