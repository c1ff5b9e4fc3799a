# By the clock: how many I/Os, how long each takes, and what CPU time it costs.

# Hundredths of a second that all CPUs have worked.
worked() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }

# Puts load $2 on all of $disks, from $jobs jobs each; $1 is the device's name and $3 the column's.
measure() {
    words "$1" "$2"
    each=
    for one in $disks; do
        each="$each --name=bench --filename=$one"
    done
    fio $load --numjobs="$jobs" --group_reporting --time_based --ramp_time=1 --runtime="$((seconds + 1))" \
        --clat_percentiles=0 --lat_percentiles=1 --percentile_list=50:99:99.9 $each \
        >"$work/fio.json" 2>"$log" &
    fio=$!
    # Without fio's start and end.
    sleep 1.5
    before=$(worked) from=$(date +%s%N)
    sleep "$seconds"
    after=$(worked) to=$(date +%s%N)
    wait $fio || fail "fio failed on $1, $2"
    # Hundredths of a second over seconds and I/Os a second, in microseconds.
    jq -r --arg cell "$1 $3" --argjson worked "$((after - before))" --argjson nanoseconds "$((to - from))" '
        [.jobs[] | (.read, .write) | select(.total_ios > 0)] | if length == 0 then empty else
        (map(.iops) | add) as $iops | (map(.bw_bytes) | add) as $bytes
        | (map(.lat_ns.percentile) | add) as $lat
        | "@cell \($cell) iops=\($iops) mib_per_second=\($bytes / 1048576)"
        + " p50_us=\($lat["50.000000"] / 1000) p99_us=\($lat["99.000000"] / 1000)"
        + " p999_us=\($lat["99.900000"] / 1000)"
        + " cpu_us=\($worked * 10000 / ($iops * $nanoseconds / 1e9))" end' \
        "$work/fio.json" || fail "fio's JSON has no result for $1, $2"
}

run=0
while [ $run -lt "$runs" ]; do
    run=$((run + 1))
    for device in $devices; do
        shape=none
        for column in $columns; do
            queues=1 jobs=1 count=1
            case $column in
                */jobs-*) jobs=${column##*-} ;;
                */queues-*) queues=${column##*-} jobs=${column##*-} ;;
                */devices-*) count=${column##*-} ;;
                */*) fail "there is no column $column" ;;
            esac
            has "$device" "$column" || continue
            # Devices are kept for the next column that wants the same.
            if [ "$queues $count" != "$shape" ]; then
                [ "$shape" = none ] || stop_many "$device"
                shape=none
                start_many "$device" "$count" || break
                shape="$queues $count"
            fi
            measure "$device" "${column%%/*}" "$column"
        done
        [ "$shape" = none ] || stop_many "$device"
    done
done
