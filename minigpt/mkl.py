"""Let MKL run its code for Intel's processors on other processors, by a small library that is loaded before torch.

On x86, torch's matrix products are MKL's, and MKL uses its best code only on Intel's processors. It asks
`mkl_serv_intel_cpu_true` whether this is one. The loader takes the first library that has a function of this name. So
a library with only this function, loaded before torch, can answer yes. torch itself does not change.

This file only needs Python, since `measure_gain` runs it in separate processes.
"""

import ctypes
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

_QUESTION = "mkl_serv_intel_cpu_true"
_YES = b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret
_PRODUCTS = ((b"T", b"N", 512, 768, 128), (b"N", b"N", 512, 256, 128), (b"N", b"T", 128, 512, 768))
"""The timed products, as in BLAS (transposed or not, m, n, k): a layer of width 128, forward and backward."""


def measure_gain(torch_folder: Path) -> float:
    """How many times as fast MKL's products are with the code for Intel's processors; 1 if that cannot be measured.

    MKL calls the function only once per process, so two processes measure. They run at the same time, so that other
    programs slow both down.
    """
    words, here = [sys.executable, "-S", __file__, str(torch_folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*words, code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii", env=here)
        for code in ("usual", "intel")
    ]
    printed = [one.communicate()[0] for one in both]  # waits for both, also if one fails
    try:
        usual, intel = map(float, printed)
    except ValueError:  # no such library, or the process failed
        return 1.0
    return usual / intel


def time_products(torch_folder: str, code: str) -> float:
    """Seconds of some products by torch's library, with MKL's usual code or its code for Intel's processors."""
    if code == "intel" and not load_stub_library():
        raise OSError("a library cannot be loaded from memory here")
    calls = ctypes.CDLL(str(Path(torch_folder) / "libtorch_cpu.so"))
    return sum(_fastest(calls, *product) for product in _PRODUCTS)


def _fastest(calls: ctypes.CDLL, left: bytes, right: bytes, m: int, n: int, k: int) -> float:
    """Seconds of the fastest of 60 products [m, k] x [k, n] of fp32 zeros by BLAS's sgemm."""
    a, b, c = ((ctypes.c_float * size)() for size in (m * k, k * n, m * n))
    rows_a, rows_b = (k if left == b"T" else m), (n if right == b"T" else k)
    flags = (ctypes.c_char(left), ctypes.c_char(right), *(ctypes.c_int(size) for size in (m, n, k)), ctypes.c_float(1))
    words = (*flags, a, ctypes.c_int(rows_a), b, ctypes.c_int(rows_b), ctypes.c_float(0), c, ctypes.c_int(m))
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        calls.sgemm_(*map(ctypes.byref, words))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def load_stub_library() -> bool:
    """Load the library of one function from memory. Returns False if the system cannot or may not do this."""
    try:
        memory = os.memfd_create("minigpt-mkl")
        os.write(memory, shared_library(_QUESTION, _YES))
        ctypes.CDLL(f"/proc/self/fd/{memory}", mode=ctypes.RTLD_GLOBAL)
    except (OSError, AttributeError):
        return False
    return True


def shared_library(name: str, code: bytes) -> bytes:
    """Build a shared library (ELF, x86-64) with one function, byte by byte, so no compiler is needed.

    It has what the loader needs, in this order (System V ABI, chapters 4 and 5): a header; four program headers, for
    the part that is read and run, the part that is written, the dynamic section, and a stack that is not executable
    (glibc 2.41 refuses a library that does not say so); a hash table of one bucket; the symbols; their names; the code;
    the dynamic section. The loader writes to this section, so it has its own page.
    """
    names = b"\0" + name.encode() + b"\0"
    table = struct.pack("<5I", 1, 2, 1, 0, 0)  # 1 bucket, 2 symbols; the bucket begins with symbol 1, which is its last
    at_table, at_symbols = 288, 312
    at_names = at_symbols + 48
    at_code = -(-(at_names + len(names)) // 16) * 16
    at_dynamic = -(-(at_code + len(code)) // 16) * 16
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, at_code, len(code))  # a global function
    entries = ((4, at_table), (5, at_names), (6, at_symbols), (10, len(names)), (11, 24), (0, 0))
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    written = 0x1000 + at_dynamic  # its address
    parts = {
        0: struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0)
        + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, at_dynamic, at_dynamic, 0x1000)
        + struct.pack("<IIQQQQQQ", 1, 6, at_dynamic, written, written, len(dynamic), len(dynamic), 0x1000)
        + struct.pack("<IIQQQQQQ", 2, 6, at_dynamic, written, written, len(dynamic), len(dynamic), 8)
        + struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16),
        at_table: table,
        at_symbols: symbols,
        at_names: names,
        at_code: code,
        at_dynamic: dynamic,
    }
    body = b""
    for place, part in parts.items():
        body = body.ljust(place, b"\0") + part
    return body


if __name__ == "__main__":
    print(time_products(*sys.argv[1:]))
