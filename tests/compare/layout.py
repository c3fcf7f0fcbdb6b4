"""layout.py SOURCE COMPILER: the structures of bench/hpa_ctypes.py are those of <hpa/hpa.h>, as the
C compiler lays them out: sizes, offsets, and no field too few."""

import subprocess
import sys
from pathlib import Path

source, compiler = Path(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, str(source / "bench"))
import hpa_ctypes  # noqa: E402


def assertions():
    for line in hpa_ctypes.layout():
        what, *numbers = line.split()
        if "." not in what:
            yield f"sizeof({what}) == {numbers[0]}", what
            continue
        structure, field = what.split(".")
        yield f"offsetof({structure}, {field}) == {numbers[0]}", what
        yield f"sizeof((({structure} *)0)->{field}) == {numbers[1]}", what


program = "#include <hpa/hpa.h>\n" + "".join(
    f'_Static_assert({claim}, "{what}");\n' for claim, what in assertions())
checked = subprocess.run(
    [*compiler, "-std=c11", "-fsyntax-only", f"-I{source}/include", "-x", "c", "-"],
    input=program, text=True)
print(f"{program.count('_Static_assert')} claims about {len(hpa_ctypes.STRUCTURES)} structures")
sys.exit(checked.returncode)
