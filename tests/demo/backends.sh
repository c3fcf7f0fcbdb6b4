# The same model, seed and text on the CPU and on the device, in f32: for 50 steps no loss may
# differ by more than 1e-4. And in bf16 the device learns the same, more coarsely.
#
# The text is random. In one that repeats itself keys score alike, and the last bit of a sum decides
# which of them is kept: then two processors rightly train on different masks.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
awk 'BEGIN {
    for (x = 1; n < 50000; n++) {
        x = x * 16807 % 2147483647
        printf "%c", 32 + int(x / 2147483647 * 90)
    }
}' > text

# compare A B TOLERANCE: losses and held-out losses of two logs.
compare() {
    local columns
    columns=$(head -n 1 "$1" | tr ',' '\n' | wc -l)
    paste -d, "$1" "$2" | awk -F, -v columns="$columns" -v most="$3" '
        function far(a, b) { return a == "" ? b != "" : !((a - b) * (a - b) <= most * most) }
        NR > 1 { n++; if (far($3, $(3 + columns)) || far($4, $(4 + columns))) { print; bad = 1 } }
        END { exit bad || n < 50 }' || fail "$1 and $2 differ by more than $3"
}

for attention in "dense" "window" "hip" "hip --dense-layers 1 --mask-refresh 5 --accumulate 2"; do
    options=("${small[@]}" --attention $attention --steps 50 --evaluate-every 10)
    run "${options[@]}" --backend cpu --checkpoint cpu.st --log cpu.csv
    run "${options[@]}" --backend cuda --dtype f32 --checkpoint cuda.st --log cuda.csv
    compare cpu.csv cuda.csv 1e-4
    run "${options[@]}" --backend cuda --dtype bf16 --checkpoint bf16.st --log bf16.csv
    compare cpu.csv bf16.csv 0.1
    run "${options[@]}" --backend cuda --dtype bf16 --checkpoint less.st --log less.csv \
        --checkpoint-layers
    cmp -s bf16.st less.st || fail "--checkpoint-layers changed the result: $attention"
done

# A checkpoint of one backend serves the other.
run "${small[@]}" --backend cuda --dtype f32 --from cpu.st --steps 0 --log x.csv --results r.csv
run "${small[@]}" --backend cpu --from cpu.st --steps 0 --log x.csv --results r.csv
awk -F, 'NR > 1 {loss[NR] = $5} END {d = loss[2] - loss[3]; exit !(d * d <= 1e-8)}' r.csv ||
    fail "a checkpoint evaluates differently: $(cat r.csv)"
exit 0
