# What a whole run leaves behind: lines, log, results, picture, sample; and that it learns.
. "$(dirname "$0")/common.sh"

run "${small[@]}" --attention hip --steps 60 --evaluate-every 20 --checkpoint a.st --log a.csv \
    --results r.csv --label "first run" --mask-png m.png --mask-layer 1 --mask-head 3 --sample 20 \
    --prompt 100

[ "$(wc -l < a.csv)" -eq 62 ] || fail "expected a heading, a row before and a row for each step"
head -n 1 a.csv | grep -q "^step,tokens,loss,held_out_loss," || fail "the log has no heading"
awk -F, 'NR > 1 && $4 != "" {n++; if (n == 1) first = $4; last = $4}
         END {exit !(n == 4 && last < 0.7 * first)}' a.csv || fail "it does not learn: $(cat a.csv)"
awk -F, 'NR > 1 && $7 != "" && !($7 > 0.3 && $7 < 1) {exit 1}' a.csv || fail "odd mask density"
head -c 8 m.png | cmp -s - <(printf '\211PNG\r\n\032\n') || fail "the picture is no PNG"
grep -q "^sample:" out || fail "no sample"
grep -q "held-out loss" out || fail "no held-out loss"

# Results gather in one file, under one heading.
run "${small[@]}" --from a.st --attention dense --steps 0 --log b.csv --results r.csv --label second
[ ! -e b.csv ] || fail "an evaluation has no steps to log"
[ "$(wc -l < r.csv)" -eq 3 ] || fail "expected a heading and two results: $(cat r.csv)"
grep -q "^first run,hip,96,60," r.csv || fail "first result: $(cat r.csv)"
grep -q "^second,dense,96,0,[0-9.]*,1,$" r.csv || fail "second result: $(cat r.csv)"

# The losses of single bytes have the mean that the evaluation says.
run "${small[@]}" --from a.st --steps 0 --log b.csv --results l.csv --losses losses
[ "$(wc -l < losses)" -eq $((2 * 2 * 96)) ] || fail "expected a loss for each byte"
awk -v told="$(tail -n 1 l.csv | cut -d, -f5)" '{sum += $1} END {d = sum / NR - told;
    exit !(d * d < 1e-6)}' losses || fail "the losses do not have the mean that was told"

# Weights alone: bf16, half the bytes of f32, and no worse than the rounding.
run "${small[@]}" --from a.st --steps 0 --log b.csv --results w.csv --weights w.st
run "${small[@]}" --from w.st --steps 0 --log b.csv --results w.csv
awk -F, 'NR > 1 {loss[NR] = $5} END {d = loss[2] - loss[3]; exit !(d * d < 1e-4)}' w.csv ||
    fail "the weights alone evaluate differently: $(cat w.csv)"
[ $((4 * $(wc -c < w.st))) -lt "$(wc -c < a.st)" ] || fail "the weights alone are no smaller"
expect_bad "--from instead of --resume" "${small[@]}" --resume w.st --steps 1

# A longer context than the one it was trained at is only an option away.
run --data text --from a.st --context 192 --batch 1 --attention hip --top-k 32 --window 16 \
    --block-q 16 --steps 0 --log b.csv

# HiP with the whole context as top-k is dense attention.
run "${small[@]}" --from a.st --attention dense --steps 0 --log b.csv --results same.csv
run "${small[@]}" --from a.st --attention hip --top-k 96 --steps 0 --log b.csv --results same.csv
[ "$(tail -n 2 same.csv | cut -d, -f5,6 | uniq | wc -l)" -eq 1 ] || fail "$(cat same.csv)"

# So is HiP with every layer dense; with one of the two, the density lies between.
run "${small[@]}" --from a.st --dense-layers 0,1 --steps 0 --log b.csv --results same.csv
[ "$(tail -n 2 same.csv | cut -d, -f5,6 | uniq | wc -l)" -eq 1 ] || fail "$(cat same.csv)"
run "${small[@]}" --from a.st --dense-layers 1 --steps 0 --log b.csv --results half.csv
run "${small[@]}" --from a.st --steps 0 --log b.csv --results half.csv
awk -F, 'NR == 2 {one = $6} NR == 3 {none = $6; d = one - (1 + none) / 2;
         exit !(none < one && d * d < 1e-8)}' half.csv || fail "--dense-layers: $(cat half.csv)"

# The text of --help names every option that the program takes.
"$program" --help > help || fail "--help fails"
for option in data context dim heads kv-heads hidden attention dense-layers top-k mask-refresh \
    steps from resume checkpoint sample; do
    grep -q -- "--$option " help || fail "--help does not explain --$option"
done
exit 0
