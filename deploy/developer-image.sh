#!/bin/sh
# Makes a sandbox image for developers from Debian packages, without a registry.
#
#   developer-image.sh TARGET [PACKAGE...]
#
# A TARGET that ends in .tar or .tar.zst becomes a tarball (tar:TARGET in
# sandbox.image), any other name a folder (dir:TARGET). Needs mmdebstrap, and
# zstd for .tar.zst. SUITE chooses the release, MIRROR where packages come from.
set -eu

if [ $# -lt 1 ]; then
  echo "usage: $0 TARGET [PACKAGE...]" >&2
  exit 2
fi
target=$1
shift
if [ -e "$target" ]; then
  echo "$target exists: remove it, or choose another name" >&2
  exit 1
fi
command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }

packages="bash build-essential ca-certificates coreutils curl diffutils file findutils gawk git grep gzip jq \
less make nodejs npm openssh-client patch procps python3 python3-pip python3-venv ripgrep sed \
tar tzdata unzip vim-tiny xz-utils zip"

case $target in
  *.tar|*.tar.zst) format=tar ;;
  *) format=directory ;;
esac

# Made beside the target: what has its name is complete.
making=$(dirname "$target")/.making-$$-$(basename "$target")
trap 'rm -rf "$making"' EXIT
include=$(echo $packages "$@" | tr ' ' ',')
mmdebstrap --variant=minbase --format="$format" --include="$include" \
  --customize-hook='chroot "$1" useradd --uid 1000 --create-home --shell /bin/bash agent' \
  --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
  "${SUITE:-stable}" "$making" ${MIRROR:+"$MIRROR"}
mv "$making" "$target"
echo "made $target"
