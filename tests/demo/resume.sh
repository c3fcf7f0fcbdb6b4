# A run that is stopped and goes on makes, bit for bit, what an unbroken run makes: with each kind
# of attention, with accumulated batches, and with masks that are kept over several steps.
. "$(dirname "$0")/common.sh"

# Runs until the log has a few steps, then interrupts as Ctrl-C would. A machine may be so fast that
# the run has ended by then: it gets another try.
run_and_interrupt() {
    local try
    for try in $(seq 50); do
        echo > part.csv
        "$program" "$@" > out 2> err &
        local child=$!
        until [ "$(wc -l < part.csv)" -gt 3 ] || ! kill -0 $child 2> /dev/null; do :; done
        kill -INT $child 2> /dev/null
        wait $child
        local status=$?
        if [ $status -eq 130 ]; then
            grep -q "^interrupted after step" out || fail "an interrupted run says so: $(cat out)"
            return
        fi
        [ $status -eq 0 ] || fail "status $status of an interrupted run: $(cat err)"
    done
    fail "ended before it could be interrupted, $try times"
}

compare() {
    local options=("${small[@]}" --steps 40 "$@")
    run "${options[@]}" --checkpoint whole.st --log whole.csv
    run "${options[@]}" --checkpoint again.st --log again.csv
    cmp -s whole.st again.st || fail "two equal runs differ: $*"
    run_and_interrupt "${options[@]}" --checkpoint part.st --log part.csv
    run "${options[@]}" --checkpoint part.st --log part.csv --resume part.st
    cmp -s whole.st part.st || fail "interrupted and resumed, the checkpoint differs: $*"
    # The log without its last two columns, the times, is whole as well.
    diff <(cut -d, -f1-7 whole.csv) <(cut -d, -f1-7 part.csv) || fail "the logs differ: $*"
}

compare --attention dense
compare --attention window --accumulate 2
compare --attention hip --dense-layers 0
compare --attention hip --mask-refresh 7

# Masks that are kept matter to the result, and are in the checkpoint only then.
grep -qa '"mask.0"' part.st || fail "a kept mask belongs in the checkpoint"
run "${small[@]}" --attention hip --steps 40 --checkpoint fresh.st --log fresh.csv
cmp -s fresh.st part.st && fail "--mask-refresh 7 changed nothing"
grep -qa '"mask.0"' fresh.st && fail "a mask is saved although every step makes its own"

# A damaged mask is refused, whatever it says.
cp part.st damaged.st
damage() { printf "\377\377\377\377" | dd of=damaged.st bs=1 seek="$1" conv=notrunc 2> /dev/null; }
size=$(wc -c < damaged.st)
for place in $(seq 8 8 512); do damage $((size - place)); done
expect_bad "mask" "${small[@]}" --attention hip --mask-refresh 7 --steps 41 --checkpoint x.st \
    --log x.csv --resume damaged.st
exit 0
