# Every kind of bad input ends with status 2, one line that says what was expected, and no
# half-written file.
. "$(dirname "$0")/common.sh"

# The command line
expect_bad "expected --data FILE"
expect_bad "no such option" --data text --frobnicate
expect_bad "expected an argument" --data
expect_bad "expected options alone" --data text more
expect_bad "expected a whole number from 1 to 64" --data text --layers 0
expect_bad "expected a whole number" --data text --layers 2.5
expect_bad "expected a whole number" --data text --layers two
expect_bad "expected a whole number" --data text --steps 99999999999999999999
expect_bad "expected a number" --data text --learning-rate nan
expect_bad "expected hip, window or dense" --data text --attention sparse
expect_bad "expected none, fast, balanced or faithful" --data text --preset best
expect_bad "expected layers from 0 to 63" --data text --dense-layers 1,,2
expect_bad "expected layers from 0 to 63" --data text --dense-layers 64
expect_bad "expected auto, cpu or cuda" --data text --backend gpu
expect_bad "expected auto, f32, bf16 or f64" --data text --dtype f16
expect_bad "expected f32 or f64 on the CPU" "${small[@]}" --backend cpu --dtype bf16
expect_bad "not both" --data text --from a --resume b
expect_bad "expected at most --learning-rate" --data text --learning-rate 1e-5

# The text
: > empty
printf short > short
printf '\037\213\010\000broken' > broken.gz
gzip -c text | head -c 2000 > cut.gz
expect_bad "missing: No such file or directory, expected a text" --data missing
expect_bad "empty is empty, expected a text" --data empty
expect_bad "expected at least 97: one more than --context" "${small[@]}" --data short
expect_bad "bytes held out, expected at least" "${small[@]}" --batch 64
expect_bad "expected a plain or gzipped text" "${small[@]}" --data .
expect_bad "broken.gz" "${small[@]}" --data broken.gz
expect_bad "cut.gz" "${small[@]}" --data cut.gz

# Dimensions that cannot be
expect_bad "expected heads to be a multiple of kv-heads" "${small[@]}" --kv-heads 3
expect_bad "kv-heads is 8, expected 1 to 4" "${small[@]}" --kv-heads 8
expect_bad "expected dim to be a multiple of heads" "${small[@]}" --dim 33
expect_bad "head-dim is 12, expected a multiple of 8" "${small[@]}" --head-dim 12
expect_bad "lower batch, context, layers, dim or hidden, or give --checkpoint-layers" \
    "${small[@]}" --dim 65536 --head-dim 8 --hidden 1048576
expect_bad "batch * context" "${small[@]}" --batch 65536 --context 16777216
expect_bad "block_k" "${small[@]}" --block-k 48
expect_bad "block_q" "${small[@]}" --block-q 24
expect_bad "expected a prompt, and both to fit" "${small[@]}" --sample 90
expect_bad "no text held out: expected --prompt" "${small[@]}" --held-out 0 --sample 9
expect_bad "expected text held out" "${small[@]}" --held-out 0 --mask-png x.png
expect_bad "--mask-layer 2" "${small[@]}" --mask-png x.png --mask-layer 2
expect_bad "expected 0 to 1 of these 2 layers" "${small[@]}" --dense-layers 0,2

# Checkpoints: what does not exist, is damaged, or belongs to something else
run "${small[@]}" --steps 2 --checkpoint good.st --log log.csv
head -c 1000 good.st > cut.st
: > empty.st
head -c 100000 /dev/zero > zeros.st
cp good.st changed.st
printf '\377' | dd of=changed.st bs=1 seek=7 conv=notrunc 2> /dev/null
sed 's/"F32"/"F64"/' good.st > types.st
sed 's/hpa-finetune 1/hpa-finetune 9/' good.st > format.st
sed 's/"layers":"2"/"layers":"3"/' good.st > layers.st
sed 's/"dim":"32"/"dim":"-2"/' good.st > dim.st
sed 's/"step":"2"/"step":"x"/' good.st > step.st
sed 's/model.norm.weight/model.mron.weight/' good.st > names.st
printf '\002\000\000\000\000\000\000\000{}' > nothing.st
for way in --from --resume; do
    expect_bad "missing.st: No such file" "${small[@]}" $way missing.st
    expect_bad "cut.st is not a safetensors file, or is cut short" "${small[@]}" $way cut.st
    expect_bad "empty.st is not a safetensors file" "${small[@]}" $way empty.st
    expect_bad "zeros.st: its header is not a JSON object" "${small[@]}" $way zeros.st
    expect_bad "changed.st is not a safetensors file" "${small[@]}" $way changed.st
    expect_bad "types.st: tensor" "${small[@]}" $way types.st
    expect_bad "format.st is not a checkpoint of this program" "${small[@]}" $way format.st
    expect_bad "expected 3, which layers.st has" "${small[@]}" $way layers.st
    expect_bad "dim.st: its note dim is -2" "${small[@]}" $way dim.st
    expect_bad "the checkpoint has no tensor model.norm.weight" "${small[@]}" $way names.st
    expect_bad "nothing.st is not a checkpoint" "${small[@]}" $way nothing.st
    expect_bad ". is not a regular file" "${small[@]}" $way .
    expect_bad "expected 32, which good.st has" "${small[@]}" --dim 64 $way good.st
done
expect_bad "its note step" "${small[@]}" --resume step.st
seq 2 5000 > other
expect_bad "not the text of the checkpoint" "${small[@]}" --data other --resume good.st

# Weights that are not numbers
cp good.st nan.st
header=$(od -An -tu8 -N8 good.st)
# The embedding comes first; its row 10, the line end, starts after 10 * 32 numbers of 4 bytes.
printf '\377\377\377\377' | dd of=nan.st bs=1 seek=$((8 + header + 1280)) conv=notrunc 2> /dev/null
expect_bad "the held-out text is not finite" "${small[@]}" --from nan.st --steps 0

# Places that cannot be written
full=(--steps 1 --log log.csv --checkpoint x.st)
expect_bad "it is not a regular file" "${small[@]}" "${full[@]}" --checkpoint /dev/full
expect_bad "cannot write no/folder.st" "${small[@]}" "${full[@]}" --checkpoint no/folder.st
expect_bad "cannot write /dev/full: No space left" "${small[@]}" "${full[@]}" --log /dev/full
expect_bad "cannot write /dev/full: No space left" "${small[@]}" "${full[@]}" --results /dev/full
expect_bad "it is not a regular file" "${small[@]}" "${full[@]}" --mask-png /dev/full
"$program" "${small[@]}" "${full[@]}" > /dev/full 2> err
[ $? -eq 2 ] || fail "a full standard output: expected status 2"
grep -q "cannot write the standard output" err || fail "a full standard output: $(cat err)"

# A disk that fills up while the checkpoint is written: the old one stays, nothing is left over.
cp good.st old.st
(
    ulimit -f 100
    expect_bad "cannot write old.st: File too large" "${small[@]}" --steps 3 --log log.csv \
        --checkpoint old.st
) || exit 1
cmp -s good.st old.st || fail "the old checkpoint was harmed"
[ -z "$(ls -- *.partial 2> /dev/null)" ] || fail "a half-written file was left"

# A learning rate that breaks the model is told, not saved.
expect_bad "is not finite" "${small[@]}" --learning-rate 1 --lowest-rate 1 --warmup 0 --clip 0 \
    --weight-decay 10 --steps 400 --log log.csv --checkpoint broken.st
[ ! -e broken.st ] || fail "a broken model was saved"
exit 0
