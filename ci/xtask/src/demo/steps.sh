# The demo's steps, the same on a host and in a guest. Run by bash as root, after
# lines that set: blockhaus (the program), base (a folder with 700 MB to spare),
# seconds (of each load). Leaves nothing behind, also when it is interrupted.
# Its words for the driver, each at the start of a line; all else is output:
#   @step TEXT      @run COMMAND      @note TEXT      @table      @fail WHY
#   @fio DEVICE LOAD JSON
set -u
exec 2>&1
disk= loop= job= finished=
work=$(mktemp -d "$base/blockhaus-demo.XXXXXX") || exit 1
mnt=$work/mnt
mkdir "$mnt"
export BLOCKHAUS_RUN_DIR=/run/blockhaus

fail() {
    echo "@fail $*"
    exit 1
}
# A command of a moment: out of Ctrl-C's reach, so that it is done or not done.
run() {
    shown "$@"
    setsid -w "$@" || fail "\`$(basename "$1") ${*:2}\` failed, see above"
}
shown() {
    local words="$*"
    words=${words//"$blockhaus"/blockhaus}
    echo "@run ${words//"$work"/\$DIR}"
}
# A command that takes its time: ended with the demo.
long() {
    "$@" &
    job=$!
    wait $job
    local status=$?
    job=
    return $status
}
fio_json() {
    long fio --output-format=json --output="$work/fio.json" "$@"
}
attach() {
    shown "$blockhaus" attach "file:$work/disk.img,size=512M"
    setsid -w "$blockhaus" attach "file:$work/disk.img,size=512M" >"$work/path" 2>"$work/words" || {
        cat "$work/words"
        fail "there is no disk: blockhaus attach failed, see above"
    }
    disk=$(cat "$work/path")
    cat "$work/words" "$work/path"
}
cleanup() {
    trap '' INT TERM HUP
    [ -n "$finished" ] || echo "@note cleaning up"
    if [ -n "$job" ]; then
        kill "$job"
        wait "$job"
    fi
    mountpoint -q "$mnt" && umount "$mnt"
    [ -z "$loop" ] || losetup --detach "$loop"
    [ -z "$disk" ] || setsid -w "$blockhaus" detach "$disk" || setsid -w "$blockhaus" detach --force "$disk"
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

echo "@step make a disk: a file of 512 MiB, served as a block device"
echo "(\$DIR below is $work)"
attach
run "$blockhaus" list

echo "@step format it"
run mkfs.ext4 -q "$disk"

echo "@step mount it and write to it"
run mount "$disk" "$mnt"
run cp "$blockhaus" "$mnt/copy"
run df -h "$mnt"

echo "@step verify: fio writes blocks of 4 to 64 KiB at random, with checksums, and reads them back"
set -- --name=verify --directory="$mnt" --size=128m --rw=randwrite --bsrange=4k-64k --direct=1 \
    --ioengine=io_uring --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0
shown fio "$@"
long fio "$@" --output="$work/verify" || {
    tail -n 20 "$work/verify"
    fail "fio read something else than it had written, or could not work, see above"
}
grep -E 'err=|(READ|WRITE):' "$work/verify"

echo "@step take it away and bring it back: what was written is still there"
run umount "$mnt"
run "$blockhaus" detach "$disk"
disk=
attach
run fsck.ext4 -fn -E no_optimize_extents "$disk"
run mount "$disk" "$mnt"
run cmp "$blockhaus" "$mnt/copy"
run umount "$mnt"

echo "@step measure it beside the kernel's loop device, 4 KiB at a time (this writes over the file system)"
truncate -s 512M "$work/loop.img" || fail "no second file"
shown losetup --find --show --direct-io=on "$work/loop.img"
loop=$(losetup --find --show --direct-io=on "$work/loop.img") || fail "there is no loop device to compare with"
echo "$loop"
target() {
    case $1 in blockhaus) echo "$disk" ;; loop) echo "$loop" ;; esac
}
for device in blockhaus loop; do
    fio_json --name=fill --filename="$(target $device)" --size=256m --rw=write --bs=1m --direct=1 \
        --ioengine=io_uring --iodepth=4 || fail "filling $(target $device) failed"
done
for load in randread-1 randread-32 randwrite-32; do
    for device in blockhaus loop; do
        set -- --name=load --filename="$(target $device)" --size=256m --rw="${load%-*}" --bs=4k \
            --iodepth="${load#*-}" --direct=1 --ioengine=io_uring --runtime="$seconds" --time_based
        [ $device = loop ] || shown fio "$@"
        fio_json "$@" || fail "fio failed on $(target $device)"
        echo "@fio $device $load $(tr -d '\n' <"$work/fio.json")"
    done
done
echo "@table"

echo "@step clean up"
run "$blockhaus" detach "$disk"
disk=
run losetup --detach "$loop"
loop=
run "$blockhaus" list
finished=yes
