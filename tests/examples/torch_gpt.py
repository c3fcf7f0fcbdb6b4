"""torch_gpt.py EXAMPLE [DEVICE]: examples/torch/train_gpt.py learns, and checkpointing changes no digit, on
the CPU and, where there is one, on a GPU; or on one of them."""

import importlib.util
import re
import subprocess
import sys

if importlib.util.find_spec("torch") is None:
    print(f"skipped: {sys.executable} has no torch")
    sys.exit(77)

import torch


def losses(device, *options):
    command = [sys.executable, f"{sys.argv[1]}/train_gpt.py", f"{sys.argv[1]}/train_gpt.py",
               "--device", device, "--seq", "512", "--top-k", "64", "--window", "64", "--dim", "16",
               "--steps", "20", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    if done.returncode:
        sys.exit("expected exit status 0")
    return [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)]


for device in sys.argv[2:] or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)):
    pruned = losses(device)
    if not (len(pruned) == 3 and pruned[0] > 5 and pruned[-1] < pruned[0] - 1):
        sys.exit("expected the loss to go down")
    if losses(device, "--checkpoint") != pruned:
        sys.exit("expected the same losses with checkpointing")
