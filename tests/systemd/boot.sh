#!/bin/sh
# Boots systemd as the first process of namespaces of its own, on a copy of this system that is thrown away.
#
#   unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup tests/systemd/boot.sh WORK SHARED [SITE …]
#
# WORK    an empty directory, for the copy
# SHARED  a directory that the copy has as /srv; SHARED/opt is its /opt, SHARED/units its /etc/systemd/system, and
#         first.target there what it boots
# SITE    directories of Python packages, which it has as /opt/site/1 and so on
set -eu
work=$1 shared=$2
shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
for each in run tmp dev var/log opt root etc/systemd/system; do
    mount -t tmpfs -o mode=755 tmpfs "$each"
done
chmod 1777 tmp
mkdir dev/pts dev/shm
for each in null zero full random urandom tty; do
    : >"dev/$each"
    mount --bind "/dev/$each" "dev/$each"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount --bind "$shared" srv
number=0
for each in "$@"; do
    number=$((number + 1))
    mkdir -p "opt/site/$number"
    mount --bind "$each" "opt/site/$number"
done
cp -r srv/units/. etc/systemd/system/
cp -r srv/opt/. opt/
rm -f etc/machine-id
tr -d - <proc/sys/kernel/random/uuid >etc/machine-id
mkdir .before
pivot_root . .before
umount -l /.before
mount --make-rshared /
ip link set lo up
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=first.target
