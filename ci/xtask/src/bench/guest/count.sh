# Instructions of an I/O: the guest's clock counts them.

# Puts the load of column $2 on device $1: $3 I/Os, or the usual number.
put() {
    words "$1" "$2"
    bytes=4096
    case $2 in
        *qd1) count=$count_qd1 ;;
        128k*) count=$count_128k bytes=131072 ;;
        *) count=$count_4k ;;
    esac
    # What takes two to four times as long is as exact with a quarter of the I/Os.
    case $1 in nbd-* | *-nbd) count=$((count / 4)) ;; esac
    count=${3:-$count}
    # Larger than the device means round again.
    fio --name=bench --filename="$disk" $load --number_ios="$count" --io_size="$((count * bytes))" \
        >"$work/fio.json" 2>"$log" || fail "fio failed on $1, $2"
}
measure() {
    put "$1" "$2"
    jq -r --arg cell "$1 $2" '.jobs[0] | (.read, .write) | select(.total_ios > 0 and .runtime > 0)
        | "@cell \($cell) instructions=\(.runtime * 1000000 / .total_ios)"' \
        "$work/fio.json" || fail "fio's JSON has no result for $1, $2"
}
# Counts by address, for few I/Os and for many: what is above the one belongs to the I/Os.
map() {
    for count in $map; do
        "$payload/mark" 0
        put "$1" "$2" "$count"
        "$payload/mark" 1
        echo "@dump $1 $2 $count"
    done
}
what=measure
if [ -n "$map" ]; then
    what=map
    # Modules that come with the first device are in it as well.
    for device in $devices; do
        start "$device" && stop "$device"
    done
    awk '$2 ~ /[tTwW]/ { print "@symbol", $1, $3 ($4 ? " " $4 : "") }' /proc/kallsyms
fi

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    for device in $devices; do
        start "$device" || continue
        for column in $columns; do
            $what "$device" "$column"
        done
        stop "$device"
    done
done
