# Runs in the guest, after lines that set: devices columns runs count_4k count_qd1 count_128k map.
# Says on stdout, in lines of their own:
#   @version NAME TEXT      what took part
#   @cell DEVICE COLUMN IOS MILLISECONDS
# and on anything else, what went wrong. The guest's clock counts instructions.
set -u
log=/tmp/bench.log
mount=/tmp/bench-fs
file=$mount/disk
fail() {
    echo "bench: $*"
    tail -n 15 "$log"
    exit 1
}

echo "@version kernel $(uname -r)"
echo "@version fio $(fio --version)"
echo "@version blockhaus $(/payload/blockhaus --version)"
case $devices in *rublk*) echo "@version rublk $(/payload/rublk --version)" ;; esac

wants() { case " $devices " in *" $1 "*) ;; *) return 1 ;; esac; }
wants_file() { case " $devices " in *-file*) ;; *) return 1 ;; esac; }

if wants null-blk; then
    modprobe null_blk nr_devices=0 || fail "this kernel has no null_blk"
    null=/sys/kernel/config/nullb/nullb0
    mkdir $null
    # No memory behind it, requests are completed where they are submitted.
    for setting in size=4096 blocksize=512 irqmode=0 completion_nsec=0 queue_mode=2 \
        submit_queues=1 hw_queue_depth=128 power=1; do
        echo "${setting#*=}" >"$null/${setting%=*}" || fail "null_blk does not take $setting"
    done
fi
if wants_file; then
    # Memory without a timer or a work queue: idle time would count.
    modprobe brd rd_nr=1 rd_size=409600 || fail "this kernel has no brd"
    mkfs.ext4 -q -O ^has_journal /dev/ram0 >"$log" 2>&1 || fail "mkfs.ext4 failed"
    mkdir $mount
    mount /dev/ram0 $mount || fail "cannot mount ext4 on brd"
    fallocate -l 256M $file || fail "cannot make the file"
    dd if=/dev/zero of=$file bs=1M count=256 oflag=direct conv=notrunc >"$log" 2>&1 || fail "cannot fill the file"
    sync
fi

# Set up the device called $1; its path goes to $disk, its command for the end to $undo.
start() {
    undo=true
    case $1 in
        null-blk) disk=/dev/nullb0 ;;
        raw-file) disk=$file ;;
        loop-file)
            disk=$(losetup --direct-io=on --show --find $file 2>"$log") || fail "losetup failed"
            undo="losetup --detach $disk"
            ;;
        blockhaus-null) blockhaus null:4G ;;
        blockhaus-null-batch) blockhaus null:4G --data-path batch-copy ;;
        blockhaus-file) blockhaus file:$file ;;
        blockhaus-file-batch) blockhaus file:$file --data-path batch-auto-buf ;;
        rublk-null) rublk null ;;
        rublk-file) rublk loop -f $file ;;
        kublk-null) kublk null ;;
        kublk-null-batch) kublk null -b ;;
        kublk-file) kublk loop --auto_zc $file ;;
        kublk-file-batch) kublk loop --auto_zc -b $file ;;
    esac
    udevadm settle
    [ -e "$disk" ] || fail "$1: $disk did not appear"
    # Not counted: whatever a first use costs, or udev still does.
    fio --name=warm-up --filename="$disk" --direct=1 --ioengine=io_uring --rw=randread --bs=4k --iodepth=64 \
        --number_ios=5000 --size=256m >"$log" 2>&1 || fail "fio failed to warm up $1"
    sleep 0.5
}
blockhaus() {
    disk=$(/payload/blockhaus attach "$@" 2>"$log") || fail "blockhaus attach $* failed"
    undo="/payload/blockhaus detach $disk"
}
rublk() {
    /payload/rublk add "$@" -n 9 >"$log" 2>&1 || fail "rublk add $* failed"
    disk=/dev/ublkb9
    undo="/payload/rublk del -n 9"
}
kublk() {
    target=$1
    shift
    /payload/kublk add -t "$target" -q 1 -d 128 -n 9 "$@" >"$log" 2>&1 || fail "kublk add -t $target $* failed"
    disk=/dev/ublkb9
    undo="/payload/kublk del -n 9"
}

# Puts the load of column $2 on device $1: $3 I/Os, or the usual number.
load() {
    count=$count_4k
    case $2 in
        4k-randread-qd64) load="--rw=randread --bs=4k --iodepth=64" ;;
        4k-randwrite-qd64) load="--rw=randwrite --bs=4k --iodepth=64" ;;
        4k-randread-qd1) load="--rw=randread --bs=4k --iodepth=1" count=$count_qd1 ;;
        128k-read-qd16) load="--rw=read --bs=128k --iodepth=16" count=$count_128k ;;
        128k-write-qd16) load="--rw=write --bs=128k --iodepth=16" count=$count_128k ;;
    esac
    count=${3:-$count}
    size=4g
    case $1 in *-file*) size=256m ;; esac
    # Larger than the device means round again.
    bytes=$((count * 4096))
    case $2 in 128k*) bytes=$((count * 131072)) ;; esac
    fio --name=bench --filename="$disk" --direct=1 --ioengine=io_uring --norandommap --randrepeat=1 \
        $load --number_ios="$count" --size=$size --io_size="$bytes" --output-format=json \
        >/tmp/fio.json 2>"$log" || fail "fio failed on $1, $2"
}
measure() {
    load "$1" "$2"
    jq -r --arg cell "$1 $2" \
        '.jobs[0] | (.read, .write) | select(.total_ios > 0) | "@cell \($cell) \(.total_ios) \(.runtime)"' \
        /tmp/fio.json || fail "fio's JSON has no result for $1, $2"
}
# Counts by address, for few I/Os and for many: what is above the one belongs to the I/Os.
map() {
    for count in $map; do
        /payload/mark 0
        load "$1" "$2" "$count"
        /payload/mark 1
        echo "@dump $1 $2 $count"
    done
}
what=measure
if [ -n "$map" ]; then
    what=map
    # Modules that come with the first device are in it as well.
    for device in $devices; do
        start "$device"
        $undo >"$log" 2>&1
    done
    awk '$2 ~ /[tTwW]/ { print "@symbol", $1, $3 ($4 ? " " $4 : "") }' /proc/kallsyms
fi

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    for device in $devices; do
        start "$device"
        for column in $columns; do
            $what "$device" "$column"
        done
        $undo >"$log" 2>&1 || fail "$device: \`$undo\` failed"
    done
done
