# SIGINT and SIGTERM save a checkpoint and print a command that, typed as it is, goes on.
. "$(dirname "$0")/common.sh"

for signal in INT TERM; do
    echo > log.csv
    "$program" "${small[@]}" --attention hip --steps 100000 --checkpoint "my run.st" \
        --log log.csv > out 2> err &
    child=$!
    until [ "$(wc -l < log.csv)" -gt 2 ]; do
        kill -0 $child 2> /dev/null || fail "ended early: $(cat out err)"
    done
    kill -$signal $child
    kill -$signal $child 2> /dev/null # twice at once is once, as timeout sends it
    wait $child
    status=$?
    case $signal in INT) expected=130 ;; TERM) expected=143 ;; esac
    [ $status -eq $expected ] || fail "status $status after SIG$signal, expected $expected"
    [ -s "my run.st" ] || fail "no checkpoint after SIG$signal"
    [ -z "$(ls -- *.partial 2> /dev/null)" ] || fail "a half-written file was left"

    command=$(tail -n 1 out)
    step=$(sed -n 's/^interrupted after step \([0-9]*\) .*/\1/p' out)
    [ -n "$step" ] || fail "it does not say after which step: $(cat out)"
    command="$command --steps $((step + 2))"
    eval "$command" > out 2> err || fail "the printed command fails: $command: $(cat err)"
    grep -q "^going on from step $step " out || fail "it did not go on from step $step: $(cat out)"
    rm -f "my run.st"
done
exit 0
