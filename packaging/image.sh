#!/bin/sh
# Builds the image of keyhaul (`make image`): wheels at the locked versions first, then the Containerfile.
#
#   packaging/image.sh [IMAGE]           default localhost/keyhaul
#
# PYTHON   makes the wheels; its minor version has to be that of the base's python3. Default: python3.
# BASE     the base image. Default: the one that the Containerfile names.
# BUILDER  what builds: podman, docker or buildah. Default: the first of them that is installed.
set -eu
cd "$(dirname "$0")/.."
image=${1:-localhost/keyhaul}
python=${PYTHON:-python3}

builder=${BUILDER:-}
for each in podman docker buildah; do
    [ -n "$builder" ] || ! command -v "$each" >/dev/null || builder=$each
done
[ -n "$builder" ] || { echo "needs podman, docker or buildah: scripts/install-debian-packages.sh containers" >&2; exit 1; }

rm -rf build/image
mkdir -p build/image
cp requirements-run.lock requirements-blind.lock build/image/
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --require-hashes --dest build/image \
    -r requirements-run.lock -r requirements-blind.lock
"$python" packaging/build.py build/image >/dev/null
rm -f build/image/*.tar.gz

case "$builder" in
# Docker's format keeps ports and stop signal the same with all engines. A chroot is enough to run a few commands,
# and works where containers cannot be made.
buildah | podman) set -- "$builder" build --format docker --isolation chroot ;;
*) set -- "$builder" build ;;
esac
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
"$@" --tag "$image" --file Containerfile .
