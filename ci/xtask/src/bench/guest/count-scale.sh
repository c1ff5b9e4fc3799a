# Instructions of an I/O at several depths and with several devices, and what devices cost that nobody uses.

# Depth $3 on each of the disks $4; $1 is the device's name and $2 the column's.
measure() {
    words "$1" 4k-randread-qd64
    set -- "$1" "$2" "$3" $4
    name=$1 column=$2 deep=$3
    shift 3
    # Enough for each job that its start does not weigh.
    count=$((count_4k / ($# < 4 ? $# : 4)))
    each=
    for one in "$@"; do
        each="$each --name=bench --filename=$one"
    done
    fio $load --iodepth="$deep" --number_ios="$count" --io_size="$((count * 4096))" --group_reporting $each \
        >"$work/fio.json" 2>"$log" || fail "fio failed on $name, $column"
    jq -r --arg cell "$name $column" '
        [.jobs[].read | select(.total_ios > 0)] | if length == 0 then empty else
        "@cell \($cell) instructions=\((map(.runtime) | max) * 1000000 / (map(.total_ios) | add))" end' \
        "$work/fio.json" || fail "fio's JSON has no result for $name, $column"
}

# All servers' threads: nanoseconds that they ran, which are instructions here, and context switches.
server_work() {
    for server in $servers; do
        for thread in /proc/"$server"/task/*; do
            cut -d ' ' -f 1 "$thread/schedstat"
            sed -n 's/.*voluntary_ctxt_switches:\t/switches /p' "$thread/status"
        done
    done | awk '/switches/ { switches += $2; next } { ran += $1 } END { printf "%d %d\n", ran, switches }'
}
watch_idle() {
    servers=$(pidof blockhaus)
    # Who looks at nobody sees nothing move.
    [ "$(echo "$servers" | wc -w)" = "$made" ] || fail "$made servers were to be idle; there are: $servers"
    before=$(server_work)
    [ "${before%% *}" -gt 0 ] || fail "the servers have not run at all, says /proc/PID/task/TID/schedstat"
    sleep 10
    after=$(server_work)
    set -- "$1" "$2" $before $after
    echo "@cell $1 $2 idle_instructions=$(($5 - $3)) idle_switches=$(($6 - $4))"
}

# The driver anew, which udev may still hold for a moment.
loop_of_depth() {
    tries=0
    until modprobe -r loop 2>"$log"; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || fail "the loop driver does not go"
        sleep 0.1
    done
    modprobe loop hw_queue_depth="$1" || fail "no loop"
}

# Makes devices for the column, unless the last one's will do.
have() {
    [ "$have" = "$1 $2" ] && return
    [ "$have" = none ] || stop_many "$device"
    have=none
    depth=$2
    # Its depth is a parameter of the module.
    case $device in loop-*) loop_of_depth "$depth" ;; esac
    start_many "$device" "$1" || return
    have="$1 $2"
    # Deeper than the warm-up was; in a shell of its own, which keeps its variables to itself.
    (measure "$device" warm-up "$2" "$disk") >/dev/null || fail "no warm-up at depth $2"
}

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    for device in $devices; do
        have=none
        for column in $columns; do
            has "$device" "$column" || continue
            wanted=${column##*-}
            case $column in
                depth-*) have 1 512 && measure "$device" "$column" "$wanted" "$disks" ;;
                one-of-*) have "$wanted" 128 && measure "$device" "$column" 64 "${disks##* }" ;;
                all-of-*) have "$wanted" 128 && measure "$device" "$column" 64 "$disks" ;;
                none-of-*) have "$wanted" 128 && watch_idle "$device" "$column" ;;
                *) fail "there is no column $column" ;;
            esac || break
        done
        [ "$have" = none ] || stop_many "$device"
    done
done
