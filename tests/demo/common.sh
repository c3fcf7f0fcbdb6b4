# What the scripts beside this one share: a small text, a small model, and checks that say what went
# wrong. Sourced with the program as $1.
set -u
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
seq 1 5000 > text

backend=${HPA_TEST_BACKEND:-cpu}
small=(--backend "$backend" --data text --layers 2 --dim 32 --heads 4 --kv-heads 2 --context 96
    --batch 2 --block-q 16 --block-k 16 --top-k 16 --window 16 --sink 16 --warmup 2
    --evaluate-batches 2 --threads 2)

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# expect_bad MESSAGE ARGUMENTS: the program ends with status 2 and one line that holds MESSAGE.
expect_bad() {
    local message=$1
    shift
    "$program" "$@" > out 2> err
    local status=$?
    [ $status -eq 2 ] || fail "status $status, expected 2: $*"
    [ "$(wc -l < err)" -eq 1 ] || fail "expected one line, got: $(cat err)"
    grep -qF -- "$message" err || fail "expected '$message', got: $(cat err)"
}

# Where the backend under test is a device that this machine does not have, the test is skipped.
if [ "$backend" = cuda ]; then
    "$program" "${small[@]}" --steps 0 --top-k 16 > out 2> err
    if grep -q "there is no CUDA device" err && [ -z "${HPA_REQUIRE_GPU:-}" ]; then
        echo "skipped: there is no CUDA device"
        exit 77
    fi
fi

run() {
    "$program" "$@" > out 2> err || fail "status $?: $* : $(cat err)"
}
