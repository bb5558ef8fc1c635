"""Measure how much memory is free on a device or in the machine, and let the process keep memory that it frees."""

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_V2, _V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def free_memory(device: "torch.device") -> int | None:
    """Bytes that this process can still allocate on a device; None if the device does not say."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    total, free = host_memory()
    return free if total else None


def keep_freed_pages() -> bool:
    """Let glibc keep freed memory for the next allocation. Returns whether it does so now.

    Nothing changes on systems without glibc, or if the environment sets MALLOC_* or GLIBC_TUNABLES.

    By default glibc returns memory to the system when 128 KiB are free at the heap's end. Later this limit is twice the
    size of the largest block that was freed. A training step frees and allocates hundreds of megabytes, and each page
    from the system costs a page fault and is filled with zeros. Blocks over 32 MiB (glibc allows no higher limit here)
    still come from the system each time.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def too_large(needed: int, what: str) -> str | None:
    """A message if `needed` bytes are more than this machine's whole memory, else None (also if that is not known)."""
    total, _ = host_memory()
    if not total or needed <= total:
        return None
    return f"{what} would take {needed / 1e9:,.1f} GB of memory or more, and this machine has {total / 1e9:,.1f} GB"


def host_memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, free) bytes: the smallest of the machine's memory, the control groups' limits and `ulimit -v`.

    Zeros if the system does not say. `root` is the folder with proc/ and sys/.
    """
    info = root / "proc/meminfo"
    if not info.is_file():
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return total, min(total, _free_on_mac() or total)
        return 0, 0
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", info.read_text(encoding="ascii"), re.M))
    total, free = (1024 * int(rows[name]) for name in ("MemTotal", "MemAvailable"))
    for limit, used in (*_groups(root), *_address_space(root)):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _free_on_mac() -> int | None:
    """Bytes that are free by the command vm_stat, with inactive pages, which can be dropped. None without it."""
    try:
        said = subprocess.run(["vm_stat"], capture_output=True, encoding="ascii", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)", said, re.M)
    return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group of this process. Cached files do not count as used: they can be dropped."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else ():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mount, names = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup"), _V1 if kinds else _V2
        folder = mount / path.strip("/")
        for place in {folder, *folder.parents, mount}:  # in a container the group may be the mount itself
            if place.is_relative_to(mount) and all((place / name).is_file() for name in names):
                limit, used = ((place / name).read_text(encoding="ascii").strip() for name in names)
                stat = place / "memory.stat"
                text = stat.read_text(encoding="ascii") if stat.is_file() else ""
                cached = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.M)
                if limit.isdigit():  # else "max"
                    yield int(limit), max(0, int(used) - (int(cached[1]) if cached else 0))


def _address_space(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of `ulimit -v`."""
    import resource  # systems with /proc have this module

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = int((root / "proc/self/statm").read_text(encoding="ascii").split()[0])
        yield limit, pages * resource.getpagesize()
