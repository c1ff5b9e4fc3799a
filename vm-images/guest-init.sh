#!/bin/bash
# PID 1 of the guest: make it a usual system, run the command, say its status,
# power off. Its own words go to the kernel's console; the command's go to a
# virtio port, so that the two never mix.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=linux
cd /root || cd /
. /run/blockhaus/settings

mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777,size=80% tmp /tmp
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
hostname blockhaus-guest
ip link set lo up

# The loaded ones make their devices before udev listens, which saves time.
modprobe -q ublk_drv
modprobe -q -a nbd loop configfs
mount -t configfs configfs /sys/kernel/config
mkdir -p /run/udev
/usr/lib/systemd/systemd-udevd --daemon

for serial in /sys/block/vd*/serial; do
    name=$(<"$serial")
    disk=/dev/$(basename "${serial%/serial}")
    case $name in
        payload) mount -t ext4 "$disk" /payload ;;
        drive*) ln -s "$disk" "/dev/$name" ;;
    esac
done

# The virtio port called $1.
port() {
    local name
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(<"$name")" = "$1" ]; then
            name=${name%/name}
            echo "/dev/${name##*/}"
        fi
    done
}

if [ -e /run/blockhaus/command ]; then
    # A port can be opened once only, and commands reopen /dev/stderr: they get
    # a pipe, which a second process empties into the port.
    mkfifo /run/blockhaus/out
    cat /run/blockhaus/out >"$(port blockhaus.out)" &
    drain=$!
    setsid bash /run/blockhaus/command </dev/null >/run/blockhaus/out 2>&1
    status=$?
    # What the command left running may hold the pipe for ever.
    for ((i = 0; i < 100; i++)); do
        kill -0 $drain 2>/dev/null || break
        [ $i -ge 5 ] && sleep 0.02 || sleep 0.002
    done
else
    [ -n "$terminal_size" ] && stty -F /dev/hvc0 $terminal_size
    PS1='\u@\h \w # ' setsid -c bash --norc -i </dev/hvc0 >/dev/hvc0 2>&1
    status=$?
fi

# Disks that are kept get what was written; a stuck device may not stop us.
if [ "$drives" -gt 0 ]; then
    sync &
    for ((i = 0; i < 250; i++)); do
        kill -0 $! 2>/dev/null || break
        sleep 0.02
    done
fi
echo "exit $status" >"$(port blockhaus.status)"
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
