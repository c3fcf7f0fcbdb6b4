# What optim_demo/positions, sweep and recall make of numbers: buckets of positions with their standard
# errors, means of a log of the program, the settings that none is faster and better than, and the
# table of what was recalled.
. "$(dirname "$0")/common.sh"
demo=$2

# Three contexts of 256 bytes: 0.1, 0.2 and 0.3 above dense from position 128 on.
seq 768 | sed 's/.*/1/' > dense
seq 0 767 | awk '{print 1 + ($1 % 256 >= 128) * (1 + int($1 / 256)) / 10}' > other
"$demo/positions" buckets 256 dense other > got || fail "positions buckets"
printf '64,1.0000,0.0000,0.0000\n128,1.2000,0.2000,0.0577\n' > want
cmp -s got want || fail "buckets: $(cat got)"

run "${small[@]}" --steps 4 --checkpoint x.st --log log.csv
"$demo/sweep" phases log.csv > got || fail "sweep phases"
awk -F, 'NF != 3 || !($1 > 0 && $2 > 0 && $3 > 0) {bad = 1} END {exit bad || NR != 1}' got ||
    fail "phases: $(cat got)"
printf '%s\n' seconds,mask_share,forward_share,backward_share 9,1,0,0 10,.1,.2,.3 12,.1,.2,.3 \
    12.5,.2,.2,.2 > log.csv
[ "$("$demo/sweep" phases log.csv)" = 133.3333,233.3333,333.3333 ] || fail "means of phases"

cat > sweep.csv << 'END'
knob,tuned,options,loss,density,mask_ms,forward_ms,backward_ms
dense,0,--attention dense,1,1,0.5,40,60
preset,0,--preset fast,1.2,0.1,1,2,3
beam,0,--beam 9,1.1,0.1,9,2,3
rep-tokens,0,--rep-tokens 9,1.15,0.1,10,2,3
preset,0,--preset faithful,1.05,0.1,8,3,4
preset,60,--preset faithful,0.5,0.1,1,1,1
END
printf '%s\n' options,recalls,recalled '--preset fast,100,0.5000' > recall.csv
"$demo/sweep" front . > got || fail "sweep front"
[ "$(cut -d, -f2 got | tr '\n' ,)" = "--preset fast,--beam 9,--preset faithful,--attention dense," ] ||
    fail "front: $(cat got)"
"$demo/sweep" table . > got || fail "sweep table"
grep -qF '| `--preset fast` | +0.2000 | 50% | 6.00 ms | 1.00 ms | 10.0% |' got ||
    fail "row: $(cat got)"

mkdir scores
for name in {dense,faithful,balanced,window}-16384 \
    {dense,faithful-256,faithful,window}-131072; do
    for when in before after; do
        printf '%s\n' bytes_back,recalls,accuracy 512,1234,0.25 >"scores/$name-$when.csv"
        echo "held-out loss 1.5000 nats a byte, all of it" >"scores/$name-$when.txt"
    done
done
printf '%s\n' bytes_back,recalls,accuracy 65536,77,0.5 >scores/faithful-256-131072-after.csv
"$demo/recall" table scores > got || fail "recall table"
grep -qF '| 512 to 1,023 | 1,234 | 25 / 25% | 25 / 25% | 25 / 25% | 25 / 25% |' got &&
    grep -qF '| 65,536 to 131,071 | 77 | 0 / 0% | 0 / 50% | 0 / 0% |' got &&
    grep -qF '| held-out loss | | 1.5000 / 1.5000 |' got || fail "recalled: $(cat got)"
exit 0
