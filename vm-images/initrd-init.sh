#!/bin/sh
# The guest's first program: find the root, hand over to guest-init.sh there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do
    $b insmod "$module" || echo "blockhaus: $module did not load"
done

# The disk that QEMU calls $1. Probing may take a moment longer than insmod.
disk() {
    tries=0
    while [ $tries -lt 200 ]; do
        for serial in /sys/block/vd*/serial; do
            if [ "$($b cat "$serial" 2>/dev/null)" = "$1" ]; then
                name=${serial%/serial}
                echo "/dev/${name##*/}"
                return
            fi
        done
        tries=$((tries + 1))
        $b usleep 20000
    done
    echo "blockhaus: there is no disk called $1" >&2
}

. /order/settings
$b mount -t ext4 "$(disk root)" /newroot
$b mkdir -p "/newroot/usr/lib/modules/$release"
$b mount -t ext4 -o ro "$(disk modules)" "/newroot/usr/lib/modules/$release"
$b mount -t tmpfs -o mode=755 run /newroot/run
$b cp -r /order /newroot/run/blockhaus
for fs in proc sys dev; do
    $b mount --move /$fs /newroot/$fs
done
exec $b switch_root /newroot /run/blockhaus/init
# exec fails when there is no root: PID 1 ends, and the kernel panics and says so.
