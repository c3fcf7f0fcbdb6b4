"""on_cpu.py SOURCE LIBRARY WORK: bench/compare_torch.py runs on the CPU, its checks pass, and they
fail when nothing is tolerated."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

source, library, work = (Path(part) for part in sys.argv[1:4])
if importlib.util.find_spec("torch") is None:
    print(f"skipped: {sys.executable} has no torch")
    sys.exit(77)

report, steps = work / "compare.json", work / "steps.csv"
command = [sys.executable, source / "bench" / "compare_torch.py", "--library", library, "--device",
           "cpu", "--dim", "64", "--heads", "4", "--kv-heads", "2", "--top-k", "128", "--window",
           "128", "--sink", "64", "--rounds", "1"]


def run(*options):
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done


def expect(condition, what):
    if not condition:
        sys.exit(f"expected {what}")


done = run("--seq", "1024,512", "--share-heads", "both", "--json", report, "--csv", steps)
expect(done.returncode == 0, "exit status 0")
expect(done.stdout.count("\n| 1,024 |") == 4, "a row for each block_k and sharing at 1024 tokens")
written = json.loads(report.read_text(encoding="utf-8"))
expect([(r["seq"], r["share_heads"]) for r in written["results"]] ==
       [(1024, False), (1024, True), (512, False), (512, True)], "four results")
for result in written["results"]:
    expect(all(ms > 0 for ms in result["ms"].values()), "times above 0")
    expect(abs(result["masks"]["128"]["tile_pairs_per_pair"] - 1) < 1e-9,
           "with block_k 128, as many pairs in FlexAttention's tiles as in libhpa's blocks")
rows = [line.split(",") for line in steps.read_text(encoding="utf-8").split()]
expect([row[0] for row in rows] == ["tokens", "1024", "512"], "a line for each length")
expect(all(float(row[4]) > 0 and row[1] == "" for row in rows[1:]),
       "steps of libhpa, and none of cuDNN on the CPU")
checked = {(check["what"], check["tensor"]) for check in written["checks"]}
for tensor in ("out", "lse", "dq", "dk", "dv"):
    expect(any(name == tensor for _, name in checked), f"a check of {tensor}")
expect(("flex against hpa, the same pairs", "out") in checked, "FlexAttention checked")

done = run("--seq", "512", "--tolerance", "1e-12")
expect(done.returncode == 1, "exit status 1 where nothing is tolerated")
expect("TOO LARGE" in done.stdout, "the errors to be named")
