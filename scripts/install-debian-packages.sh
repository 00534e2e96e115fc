#!/bin/sh
# Installs the Debian packages that the optional parts of keyhaul need. keyhaul itself needs none of them.
#
#   scripts/install-debian-packages.sh [--list] [tpm] [pkcs11] [testbed] [browser] [monitoring] [clients]
#                                      [consumers] [containers] [systemd]
#
# Without a group: all of them. --list says what would be installed, and why, and changes nothing.
set -eu

packages_of() {  # group -> lines "package  why"
    case "$1" in
    tpm) cat <<'LIST'
swtpm       a TPM 2.0 in software, for the tests and for trying the tpm slot without a chip
libtss2-dev headers of the TPM software stack: tpm2-pytss comes as source only and is built against it
pkg-config  how the build of tpm2-pytss finds that stack
gcc         compiles tpm2-pytss, together with the C library headers and those of Debian's Python:
libc6-dev   headers of the C library
python3-dev headers of Python
tpm2-tools  to look at and to repair a TPM by hand (tpm2_getcap, tpm2_pcrread, tpm2_nvundefine)
socat       lets swtpm listen on a Unix socket of mode 0600 instead of a TCP port any local user reaches
LIST
        ;;
    pkcs11) cat <<'LIST'
softhsm2    a PKCS#11 token in software, for the tests and for trying the pkcs11 slot without an HSM
LIST
        ;;
    testbed) cat <<'LIST'
iproute2    network namespaces and links for the multi-host testbed (ip, tc)
nftables    cuts links between the hosts of the testbed
LIST
        ;;
    browser) cat <<'LIST'
chromium    a browser without a window, for the tests of the dashboard
LIST
        ;;
    monitoring) cat <<'LIST'
prometheus  scrapes the nodes in the test of the metrics, the alert rules and the dashboard
LIST
        ;;
    clients) cat <<'LIST'
openjdk-17-jdk-headless  runs a 014 client in Java against the application's port
golang-go                the same for Go
LIST
        ;;
    consumers) cat <<'LIST'
iproute2                 network namespaces for the tests of agents
iputils-ping             traffic through their tunnels
wireguard-tools          wg, which the agent for WireGuard calls
wireguard-go             WireGuard in user space, where the kernel has none
stunnel4                 TLS 1.3 with the agents' keys around any TCP application
strongswan-charon        IKEv2 with the agents' keys as PPKs (RFC 8784)
libstrongswan-standard-plugins  the algorithms that charon needs for modern proposals
strongswan-swanctl       the VICI socket of charon, which the agent speaks to
libcharon-extra-plugins  ESP in user space (kernel-libipsec), where the kernel has none
LIST
        ;;
    containers) cat <<'LIST'
podman      builds the image and runs the compose file, without an engine
crun        the runtime that can do without rights over cgroups
containernetworking-plugins  bridges between the containers
mmdebstrap  makes a base image from packages, where there is no registry to take one from
LIST
        ;;
    systemd) cat <<'LIST'
systemd     is booted in namespaces of its own, to run the unit as it is
dbus        how systemd-run speaks to it
LIST
        ;;
    *)
        echo "unknown group '$1': see the head of this file for those there are" >&2
        return 2
        ;;
    esac
}

list_only=no
if [ "${1:-}" = --list ]; then
    list_only=yes
    shift
fi
[ $# -gt 0 ] || set -- tpm pkcs11 testbed browser monitoring clients consumers containers systemd

wanted=""
for group in "$@"; do
    lines=$(packages_of "$group")
    echo "$group:"
    echo "$lines" | sed 's/^/  /'
    wanted="$wanted $(echo "$lines" | cut -d' ' -f1 | tr '\n' ' ')"
done
[ "$list_only" = no ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: install the equivalents of the packages above with your own package manager" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || { echo "run this as root, or install sudo" >&2; exit 1; }
fi
$as_root apt-get update
# shellcheck disable=SC2086  # word splitting is meant: a list of package names
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $wanted

cat <<'NEXT'
Next, the Python side, in a checkout (tpm2-pytss is compiled, so after the packages above):
  .venv/bin/pip install --require-hashes -r requirements-hardware.lock
which is both extras at the versions the tests ran with. Elsewhere, the extra you want:
  pip install 'keyhaul[tpm]' 'keyhaul[pkcs11]'
NEXT
