#!/bin/busybox sh
# The guest's first program: find the root, hand over to guest-init.sh there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do
    $b insmod "$module" || echo "blockhaus: $module did not load"
done

# Set disk to the device that QEMU calls $1. It may come a moment after insmod.
find_disk() {
    tries=0
    while [ $tries -lt 200 ]; do
        for serial in /sys/block/vd*/serial; do
            name=
            read -r name 2>/dev/null <"$serial"
            if [ "$name" = "$1" ]; then
                disk=${serial%/serial}
                disk=/dev/${disk##*/}
                return
            fi
        done
        tries=$((tries + 1))
        $b usleep 20000
    done
    echo "blockhaus: there is no disk called $1"
}

. /order/settings
find_disk root
$b mount -t ext4 "$disk" /newroot
$b mkdir -p "/newroot/usr/lib/modules/$release"
find_disk modules
$b mount -t ext4 -o ro "$disk" "/newroot/usr/lib/modules/$release"
$b mount -t tmpfs -o mode=755 run /newroot/run
$b cp -r /order /newroot/run/guest
$b cp $b /newroot/run/guest/busybox
for fs in proc sys dev; do
    $b mount --move /$fs /newroot/$fs
done
exec $b switch_root /newroot /run/guest/busybox sh /run/guest/init
# exec fails when there is no root: PID 1 ends, and the kernel panics and says so.
