"""Memory of the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from doublehead.common.memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    block = bytearray(b"1") * 2**26
    del block
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such parameters")
def test_large_blocks_are_used_again():
    """64 MB have 16384 pages, each of which the system clears when it is touched for the first time."""

    def faults(*words):
        words = (sys.executable, "-c", PROGRAM, *words)
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 100 < faults()
