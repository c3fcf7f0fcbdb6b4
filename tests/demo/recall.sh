# optim_demo/recall: the text is the same every time, no recall lies farther back than was asked,
# and the score finds what a model knew where it stood.
. "$(dirname "$0")/common.sh"
recall=$2

seq 1 200000 > filler
"$recall" text filler 1024 60000 3 > task || fail "recall text"
"$recall" text filler 1024 60000 3 | cmp -s - task || fail "the same seed made another text"
[ "$(wc -c < task)" -eq 60000 ] || fail "expected 60000 bytes"
awk 'BEGIN {RS = "@"}
     NR > 1 && /^[a-z]+=[a-z]+\n/ {
         n++
         if ($1 in seen) { recalls++; if (at - seen[$1] > 1100) far = 1 }
         if (++times[$1] > 2) often = 1
         seen[$1] = at
     }
     {at += length($0) + 1}
     END {exit !(n > 1000 && recalls > n / 4 && recalls < n / 2 && !far && !often)}' task ||
    fail "the text is not as told"

# One who knows everything, one who knows nothing, and one who knows all but every third letter.
for knows in "0.1" "9" "NR % 3 ? 0.1 : 9"; do
    seq 6000 | awk "{print $knows}" > losses
    "$recall" accuracy task 0.1 512 losses > score
    tail -n +2 score | awk -F, -v want="$([ "$knows" = 0.1 ] && echo 1 || echo 0)" '
        {n += $2; if ($3 != want || $1 > 512) bad = 1} END {exit bad || n < 20}' ||
        fail "$knows: $(cat score)"
done
exit 0
