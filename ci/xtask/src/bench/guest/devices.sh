# Makes devices and takes them away again, in a guest or on the host. Before this come lines that set payload,
# work, here, devices, columns, runs, seconds, count_…, file_mib, files and map, a function make with a case
# for each device, and has, which knows what a device lacks; after it comes what is done with them. Said on stdout, in lines of their own:
#   @version NAME TEXT                  what took part
#   @missing DEVICE WHY                 it cannot be had here
#   @cell DEVICE COLUMN NAME=VALUE…     figures
# and on anything else, what went wrong.
set -u
log=$work/bench.log
folder=$work/bench-fs
socket=$work/bench.sock
depth=128
queues=1
undo=
undos=
fail() {
    echo "bench: $*"
    tail -n 15 "$log"
    # The host goes on after us: the newest device goes first, the one in the making included.
    [ -z "$here" ] || printf '%s%s\n' "$undos" "$undo" | tac | while read -r undo; do
        [ -z "$undo" ] || $undo </dev/null
    done
    exit 1
}
# This device cannot be had: the others are measured all the same.
give_up() {
    why="$* $(tr -s '\r\n' ' ' <"$log" | cut -c 1-300)"
    return 1
}
quietly() { "$@" >"$log" 2>&1; }

wants() { case " $devices " in *" $1"*) ;; *) return 1 ;; esac; }
wants_file() { case " $devices " in *-file*) ;; *) return 1 ;; esac; }

echo "@version kernel $(uname -r)"
echo "@version fio $(fio --version)"
[ -x "$payload/blockhaus" ] && echo "@version blockhaus $("$payload/blockhaus" --version)"
wants rublk && echo "@version rublk $("$payload/rublk" --version)"
wants nbd-nbdkit && echo "@version nbdkit $(nbdkit --version)"
wants nbd-qemu && echo "@version qemu-nbd $(qemu-nbd --version | head -n 1 | cut -d ' ' -f 2)"
: >"$log"

# Files that are written once. In a guest they lie on memory without a timer or a work queue: idle time
# would count.
if wants_file; then
    mkdir "$folder"
    if [ -z "$here" ]; then
        modprobe brd rd_nr=1 rd_size=$(((file_mib * files + 144) * 1024)) || fail "this kernel has no brd"
        quietly mkfs.ext4 -q -O ^has_journal /dev/ram0 || fail "mkfs.ext4 failed"
        mount /dev/ram0 "$folder" || fail "cannot mount ext4 on brd"
    fi
    number=0
    while [ $number -lt "$files" ]; do
        number=$((number + 1))
        fallocate -l "${file_mib}M" "$folder/disk$number" || fail "cannot make the file"
        quietly dd if=/dev/zero of="$folder/disk$number" bs=1M count="$file_mib" oflag=direct conv=notrunc ||
            quietly dd if=/dev/zero of="$folder/disk$number" bs=1M count="$file_mib" conv=notrunc ||
            fail "cannot fill the file"
    done
    sync
fi
file=$folder/disk1

# Each sets disk to the device's path, and undo to the command for its end.
itself() { disk=$1 undo=true; }
loop() {
    disk=$(losetup --direct-io=on --show --find "$1" 2>"$log") || { give_up "losetup failed:"; return; }
    undo="losetup --detach $disk"
}
null_blk() {
    modprobe null_blk nr_devices=0 2>"$log" || { give_up "this kernel has no null_blk:"; return; }
    null=/sys/kernel/config/nullb/nullb0
    mkdir $null 2>"$log" || { give_up "null_blk is in use:"; return; }
    # No memory behind it, requests are completed where they are submitted.
    for setting in size=4096 blocksize=512 irqmode=0 completion_nsec=0 queue_mode=2 \
        submit_queues=$queues hw_queue_depth=$depth power=1; do
        echo "${setting#*=}" >"$null/${setting%=*}" || fail "null_blk does not take $setting"
    done
    disk=/dev/nullb0
    undo="rmdir $null"
}
# Every block has its memory before anything is measured.
fill() {
    quietly fio --name=fill --filename="$disk" --direct=1 --rw=write --bs=1m --size=256m --buffer_pattern=0xb10c ||
        fail "fio failed to fill $disk"
}
blockhaus() {
    set -- "$@" --queues "$queues" --depth "$depth"
    case $* in *"--engine nbd"*) modprobe nbd 2>"$log" || { give_up "this kernel has no nbd:"; return; } ;; esac
    disk=$("$payload/blockhaus" attach "$@" 2>"$log") || { give_up "blockhaus attach $* failed:"; return; }
    undo="$payload/blockhaus detach $disk"
    case $1 in ram:*) fill ;; esac
}
rublk() {
    quietly "$payload/rublk" add "$@" -n 9 -q "$queues" -d "$depth" || { give_up "rublk add $* failed:"; return; }
    disk=/dev/ublkb9
    undo="$payload/rublk del -n 9"
}
kublk() {
    target=$1
    shift
    quietly "$payload/kublk" add -t "$target" -q "$queues" -d "$depth" -n 9 "$@" ||
        { give_up "kublk add -t $target $* failed:"; return; }
    disk=/dev/ublkb9
    undo="$payload/kublk del -n 9"
}
# A server in the background that listens on the socket.
serve() {
    rm -f "$socket"
    "$@" >"$log" 2>&1 &
    server=$!
    tries=0
    until [ -S "$socket" ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] && kill -0 $server 2>/dev/null || { give_up "$1 does not listen:"; return; }
        sleep 0.1
    done
    undo=serve_end
}
serve_end() {
    kill $server
    # What a signal ends is no failure.
    wait $server || true
}
# The kernel's own client of such a server.
nbd() {
    modprobe nbd 2>"$log" || { give_up "this kernel has no nbd:"; return; }
    [ ! -e /sys/block/nbd0/pid ] || { give_up "/dev/nbd0 is in use"; return; }
    serve "$@" || return
    quietly nbd-client -unix "$socket" /dev/nbd0 -b 512 || { give_up "nbd-client failed:"; kill $server; return 1; }
    disk=/dev/nbd0
    undo=nbd_end
    case $* in *memory*) fill ;; esac
}
nbd_end() {
    nbd-client -d /dev/nbd0 && kill $server && wait $server
    # Others read the file past the page cache, and should not pay for what these servers left in it.
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# The device called $1, ready; says so when it cannot be had.
start() {
    make "$1" || { echo "@missing $1 $why"; return 1; }
    udevadm settle
    [ -e "$disk" ] || fail "$1: $disk did not appear"
    # Not counted: whatever a first use costs, or udev still does.
    quietly fio --name=warm-up --filename="$disk" --direct=1 --ioengine=io_uring --rw=randread --bs=4k \
        --iodepth=64 --number_ios=5000 --size="${file_mib}m" || fail "fio failed to warm up $1"
    sleep 0.5
}
stop() {
    ending=$undo undo=
    quietly $ending </dev/null || fail "$1: \`$ending\` failed"
}

# As many of device $1 as $2 says, a file each; their paths are in $disks then.
start_many() {
    disks= undos=
    made=0
    while [ $made -lt "$2" ]; do
        made=$((made + 1))
        file=$folder/disk$made
        start "$1" || { stop_many "$1"; return 1; }
        disks="$disks $disk"
        undos="$undos$undo
"
        undo=
    done
}
stop_many() {
    all=$undos undos=
    while read -r undo; do
        [ -z "$undo" ] || stop "$1"
    done <<END
$all
END
}

# Sets load to fio's words for the load called $2 on the device called $1, and bytes to the size of an I/O.
words() {
    case $2 in
        4k-randread-qd64) load="--rw=randread --bs=4k --iodepth=64" ;;
        4k-randwrite-qd64) load="--rw=randwrite --bs=4k --iodepth=64" ;;
        4k-randread-qd1) load="--rw=randread --bs=4k --iodepth=1" ;;
        128k-read-qd16) load="--rw=read --bs=128k --iodepth=16" ;;
        128k-write-qd16) load="--rw=write --bs=128k --iodepth=16" ;;
        *) fail "there is no load $2" ;;
    esac
    size=4g
    case $1 in *-file* | *-memory*) size=${file_mib}m ;; esac
    load="--direct=1 --ioengine=io_uring --norandommap --randrepeat=1 --size=$size --output-format=json $load"
}
