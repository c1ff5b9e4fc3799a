#!/bin/busybox sh
# PID 1 of the guest: make it a usual system, run the command, say its status,
# power off. Its own words go to the kernel's console; the command's go to a
# virtio port, so that the two never mix. What is simple is busybox' work: a
# static program starts several times faster on an emulated CPU.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=linux
b=/run/guest/busybox
cd /root || cd /
. /run/guest/settings

# The loaded ones make their devices before udev listens, which saves time.
$b modprobe -q ublk_drv
$b modprobe -q nbd nbds_max=4
$b modprobe -q loop
$b modprobe -q configfs

$b mkdir -p /dev/pts /dev/shm /run/lock /run/udev
cat_fstab() {
    echo "devpts  /dev/pts            devpts   gid=5,mode=620,ptmxmode=666 0 0"
    echo "shm     /dev/shm            tmpfs    mode=1777                   0 0"
    echo "tmp     /tmp                tmpfs    mode=1777,size=80%          0 0"
    echo "debug   /sys/kernel/debug   debugfs  defaults                    0 0"
    echo "trace   /sys/kernel/tracing tracefs  defaults                    0 0"
    echo "config  /sys/kernel/config  configfs defaults                    0 0"
    echo "cgroup2 /sys/fs/cgroup      cgroup2  defaults                    0 0"
    for serial in /sys/block/vd*/serial; do
        read -r name <"$serial"
        disk=${serial%/serial}
        disk=/dev/${disk##*/}
        case $name in
            payload) echo "$disk /payload ext4 defaults 0 0" ;;
            drive*) $b ln -s "$disk" "/dev/$name" ;;
        esac
    done
}
cat_fstab >/run/guest/fstab
$b mount -a -T /run/guest/fstab
$b ln -sfn /proc/self/fd /dev/fd
for at in 0:stdin 1:stdout 2:stderr; do
    $b ln -sfn "/proc/self/fd/${at%:*}" "/dev/${at#*:}"
done
echo blockhaus-guest >/proc/sys/kernel/hostname
$b ip link set lo up
# The kernel starts with one CPU: it patches its own code while it boots, and
# QEMU's translator can let another CPU run into a half-patched place.
for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
    echo 1 >"$cpu"
done

/usr/lib/systemd/systemd-udevd --daemon

# Set port to the device of the virtio port called $1.
find_port() {
    for file in /sys/class/virtio-ports/*/name; do
        read -r name <"$file"
        if [ "$name" = "$1" ]; then
            port=${file%/name}
            port=/dev/${port##*/}
        fi
    done
}

# Wait until process $1 has ended, for at most $2 times 20 ms.
wait_a_while() {
    tries=0
    while [ -e "/proc/$1" ] && [ $tries -lt "$2" ]; do
        tries=$((tries + 1))
        $b usleep 20000
    done
}

find_port blockhaus.status
status_port=$port
exec 9>"$status_port"
echo started >&9

if [ -e /run/guest/command ]; then
    # A port can be opened once only, and commands reopen /dev/stderr: they get
    # a pipe, which a second process empties into the port.
    find_port blockhaus.out
    $b mkfifo /run/guest/out
    $b cat /run/guest/out >"$port" 9>&- &
    drain=$!
    $b setsid bash /run/guest/command </dev/null >/run/guest/out 2>&1 9>&-
    status=$?
    # What the command left running may hold the pipe for ever.
    wait_a_while $drain 100
else
    [ -n "$terminal_size" ] && $b stty -F /dev/hvc0 $terminal_size
    PS1='\u@\h \w # ' $b setsid -c bash --norc -i </dev/hvc0 >/dev/hvc0 2>&1 9>&-
    status=$?
fi

# Disks that are kept get what was written; a stuck device may not stop us.
if [ "$drives" -gt 0 ]; then
    $b sync &
    wait_a_while $! 250
fi
echo "exit $status" >&9
echo o >/proc/sysrq-trigger
while :; do $b sleep 1; done
