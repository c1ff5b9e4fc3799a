# NBD over a Unix socket, without the kernel's client: how many I/Os, and how fast whole disks are copied.

# Different blocks, none of them zeroes: what a copy could leave out counts for nobody.
source=$work/source
[ -s "$source" ] || quietly dd if=/dev/urandom of="$source" bs=1M count="$file_mib" || fail "cannot make the source"
uri="nbd+unix:///disk?socket=$socket"

# GiB a second of the copy "$3" on device $1 under the name $2.
copy() {
    from=$(date +%s%N)
    quietly nbdcopy $3 || fail "nbdcopy failed on $1, $2"
    to=$(date +%s%N)
    echo "@cell $1 $2 gib_per_second=$(awk "BEGIN { print $file_mib / 1024 / (($to - $from) / 1e9) }")"
}

# What load $2 from $3 connections makes of device $1.
load() {
    case $2 in
        4k-randread-qd64) rw=randread ;;
        4k-randwrite-qd64) rw=randwrite ;;
        *) fail "there is no load $2" ;;
    esac
    fio --name=nbd --ioengine=nbd --uri="$uri" --size=512m --bs=4k --iodepth=64 --rw=$rw --numjobs="$3" \
        --group_reporting --time_based --ramp_time=1 --runtime="$seconds" --output-format=json \
        --output="$work/fio.json" >"$log" 2>&1 || fail "fio failed on $1, $2"
    # Warnings may stand before it.
    sed -n '/^{/,$p' "$work/fio.json" | jq -r --arg cell "$1 $2/connections-$3" '
        .jobs[0] | (.read.iops + .write.iops) as $iops | if $iops > 0 then "@cell \($cell) iops=\($iops)" else empty end' ||
        fail "fio's JSON has no result for $1, $2"
}

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    for device in $devices; do
        make "$device" || { echo "@missing $device $why"; continue; }
        # First, so that every block has its memory before anything else is measured.
        for column in $columns; do
            has "$device" "$column" || continue
            case $column in
                copy-in) copy "$device" copy-in "$source $uri" ;;
                copy-out) copy "$device" copy-out "$uri null:" ;;
                */connections-*) load "$device" "${column%/*}" "${column##*-}" ;;
                *) fail "there is no column $column" ;;
            esac
        done
        stop "$device"
    done
done
