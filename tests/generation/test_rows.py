"""Test the C kernels of decoding: they equal torch's forms, are compiled once and safely, else torch replaces them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow

from minigpt.generation.fast import rows
from minigpt.generation.fast.prepare import quantised
from minigpt.model import reference
from minigpt.model.kernels import fused

KINDS = [torch.float32, torch.bfloat16, torch.int8]
TOLERANCE = 2e-6
"""Error over the sum of |weight x|: fp32 sums in another order. For int8, vectors are also rounded to 16 bits."""


@pytest.fixture(scope="module")
def kernels() -> rows.Kernels:
    found = rows.library()
    if found is None:
        pytest.skip("no C compiler here")
    return found


@pytest.fixture(scope="module")
def compiled(kernels: rows.Kernels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the compiled library."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        load_again(patch, folder)
    return folder


def layer(kind: torch.dtype, n: int, k: int, bias: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weight, scale = torch.randn(n, k, generator=generator), None
    if kind == torch.int8:
        weight, scale = quantised(weight)
    return weight.to(kind), scale, torch.randn(n, generator=generator) if bias else None


def check_linear(kernels: rows.Kernels, kind: torch.dtype, n: int, k: int, count: int, bias: bool, seed: int = 0):
    weight, scale, offset = layer(kind, n, k, bias, seed)
    x = torch.randn(count, k, generator=torch.Generator().manual_seed(seed + 1)) * 3
    made = kernels.linear(rows.Matrix.of(weight, scale, offset), x)
    whole = rows.dequantised(weight, scale)
    right = F.linear(x.double(), whole.double(), None if offset is None else offset.double())
    size = F.linear(x.abs(), whole.abs(), None if offset is None else offset.abs())
    assert made.shape == (count, n) and made.dtype == torch.float32
    unit = torch.maximum(x.abs().amax(1) / 32767, x.abs().sum(1) * 127 / 2.1e9)[:, None] * (kind == torch.int8)
    assert ((made - right).abs() <= TOLERANCE * size + 0.501 * unit * whole.abs().sum(1)).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 4, 7, 8, 32])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 17), (3, 768), (301, 64), (50304, 24), (130, 3072)])
def test_products_equal_torchs(kernels: rows.Kernels, kind: torch.dtype, count: int, n: int, k: int) -> None:
    check_linear(kernels, kind, n, k, count, bias=bool(n % 2))


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 70),
    st.integers(1, 200),
    st.integers(1, 32),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_of_any_size_equal_torchs(kind: torch.dtype, n: int, k: int, count: int, bias: bool, seed: int):
    found = rows.library()
    if found is not None:
        check_linear(found, kind, n, k, count, bias, seed)


def test_no_int8_sum_overflows(kernels: rows.Kernels) -> None:
    """The worst case: all weights and all numbers as large as can be, over more columns than 2^31 / 127 / 32767."""
    weight = torch.full((3, 20_000), 127, dtype=torch.int8)
    made = kernels.linear(rows.Matrix.of(weight, torch.ones(3), None), torch.full((1, 20_000), -7.0))
    torch.testing.assert_close(made, torch.full((1, 3), -7.0 * 127 * 20_000), rtol=1e-3, atol=0)


def test_what_c_would_misread_is_refused(kernels: rows.Kernels) -> None:
    weight, scale, bias = layer(torch.int8, 4, 8, bias=True)
    with pytest.raises(ValueError, match="more than 32"):
        kernels.linear(rows.Matrix.of(weight, scale, bias), torch.ones(33, 8))
    for wrong in ((weight[:, ::2], scale, bias), (weight, scale.half(), bias), (weight, scale, bias.double())):
        with pytest.raises(TypeError, match="contiguous"):
            rows.Matrix.of(*wrong)


def test_a_value_that_is_not_a_number_is_reported(kernels: rows.Kernels) -> None:
    for kind in (torch.float32, torch.bfloat16):
        weight, _, _ = layer(kind, 3, 40, bias=False)
        weight[1, 33] = float("nan")
        made = kernels.linear(rows.Matrix.of(weight, None, None), torch.ones(1, 40))
        assert made.isnan().tolist() == [[False, True, False]]
    weight, scale, _ = layer(torch.int8, 3, 40, bias=False)
    matrix = rows.Matrix.of(weight, scale, None)
    assert kernels.linear(matrix, torch.zeros(2, 40)).tolist() == [[0] * 3] * 2
    for bad in ("nan", "inf"):
        x = torch.ones(2, 40)
        x[1, 7] = float(bad)
        assert kernels.linear(matrix, x).isfinite().all(1).tolist() == [True, False]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "heads", "groups", "size"), [(1, 12, 12, 64), (3, 4, 2, 17), (2, 3, 1, 1)])
@pytest.mark.parametrize("total", [1, 5, 300])
def test_attention_equals_the_reference(kernels, kind, batch, heads, groups, size, total) -> None:
    generator = torch.Generator().manual_seed(1)
    query = 3 * torch.randn(batch, heads, 1, size, generator=generator)
    cache = torch.randn(2, batch, groups, total + 9, size, generator=generator).to(kind)
    key, value = cache[:, :, :, :total].unbind(0)
    made = kernels.attend(query, key, value)
    torch.testing.assert_close(made, reference.attention(query, key.float(), value.float()), rtol=2e-5, atol=2e-5)


RUN = """
import sys, warnings, torch
from minigpt.config import GenerationConfig, ModelConfig
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.generation import generate
from minigpt.generation.fast import rows
from minigpt.model import GPT
shape = ModelConfig(vocab_size=70, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=16, init_std=0.3)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model = prepare_decoding(GPT(shape, seed=4), sys.argv[1])
    ids = [int(i) for i in generate(model, torch.tensor([[1, 2]]), GenerationConfig(max_new_tokens=30, temperature=0))]
print(ids)
print(rows.library() is not None, *[str(w.message) for w in told if "torch's own ops" in str(w.message)], sep="|")
"""


def start(cache: Path, precision: str = "fp32", **env: str) -> subprocess.Popen[str]:
    words = {**os.environ, "MINIGPT_CACHE": str(cache), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, "-c", RUN, precision], stdout=subprocess.PIPE, env=words, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_without_a_compiler_torch_gives_the_same_and_one_warning(
    compiled: Path, tmp_path: Path, precision: str
) -> None:
    ids, found = finish(start(tmp_path, precision, PATH=""))
    again, without = finish(start(compiled, precision))
    assert without == "True" and (ids == again or precision == "int8")  # torch rounds vectors to bf16 there
    assert found.startswith("False|decoding by torch's own ops") and "no C compiler" in found and found.count("|") == 1


@pytest.mark.slow
def test_a_broken_compiler_costs_one_warning(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'it is Sunday' >&2\nexit 1\n")
    compiler.chmod(0o755)
    _, found = finish(start(tmp_path, PATH=f"{tmp_path}:/bin"))
    assert found == f"False|decoding by torch's own ops, which is slower: {compiler} failed: it is Sunday"


@pytest.mark.slow
def test_compiling_at_once_is_safe_and_a_torn_file_is_made_again(kernels, tmp_path: Path) -> None:
    results = [finish(process) for process in [start(tmp_path) for _ in range(4)]]
    assert all(result == results[0] and result[1] == "True" for result in results)
    (library,) = (tmp_path / "kernels").iterdir()
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert finish(start(tmp_path)) == results[0]
    assert [path.read_bytes() == whole for path in (tmp_path / "kernels").iterdir()] == [True]


def test_flags_that_a_compiler_refuses_are_tried_only_once(kernels, tmp_path: Path, monkeypatch) -> None:
    told, compiler = tmp_path / "told", tmp_path / "cc"
    refuse = 'case "$*" in *-fopenmp*) exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\necho x >> {told}\n{refuse}\nexec {shutil.which("cc")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for _ in range(2):  # as two processes would
        assert load_again(monkeypatch, tmp_path / "cache") == []
        assert told.read_text().splitlines() == ["x"] * 3, "twice with OpenMP, then without"


PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void ran(void) { fclose(fopen("%s", "w")); }
"""


def plant(folder: Path, marker: Path) -> None:
    """Replace each library by one that writes a file when it is loaded."""
    source = folder.parent / "planted.c"
    source.write_text(PLANTED % marker)
    for library in folder.iterdir():
        mode = library.stat().st_mode
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        library.chmod(mode)


def load_again(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """Load the kernels as a new process does; the warnings."""
    monkeypatch.setenv("MINIGPT_CACHE", str(cache))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert rows.library.__wrapped__() is not None
    return [str(warning.message) for warning in told]


def test_a_library_is_kept_where_nobody_else_can_write(kernels, tmp_path: Path, monkeypatch) -> None:
    before = os.umask(0o002)
    assert load_again(monkeypatch, tmp_path) == []
    os.umask(before)
    (library,) = (tmp_path / "kernels").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (library.parent, library)] == [0o700, 0o700]
    compiled = library.stat().st_mtime_ns
    assert load_again(monkeypatch, tmp_path) == []
    assert library.stat().st_mtime_ns == compiled, "the library was not compiled again"


@pytest.mark.parametrize(
    "way", mostly_slow(["bytes", "file mode", "no hash", "folder mode", "file owner", "folder owner"], [0, 1])
)
def test_a_library_that_another_could_have_written_is_never_loaded(
    compiled: Path, tmp_path: Path, monkeypatch, way: str
) -> None:
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "kernels").iterdir()] == [0o700]
    folder, marker = tmp_path / "kernels", tmp_path / "ran"
    hashes = tmp_path / "kernels.json"
    (library,) = folder.iterdir()
    if way.endswith("owner") and os.geteuid():
        pytest.skip("only root can give files away")
    if way == "no hash":
        hashes.write_text("[]")
    else:
        plant(folder, marker)
    if way not in ("bytes", "no hash"):  # whoever changed the file changed the hash too
        hashes.write_text(json.dumps({library.stem: hashlib.sha256(library.read_bytes()).hexdigest()}))
    target = folder if way.startswith("folder") else library
    if way.endswith("mode"):
        target.chmod(0o777)
    elif way.endswith("owner"):
        os.chown(target, 65534, 65534)
    told = load_again(monkeypatch, tmp_path)
    assert not marker.exists()
    if way == "folder owner":
        assert told == [f"compiled kernels are not kept: {folder}: it is another user's"]
        return
    assert told == [] and folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_uid for path in folder.iterdir()] == [os.geteuid()]
    assert load_again(monkeypatch, tmp_path) == [] and not marker.exists()


def test_kernels_that_compute_wrongly_are_not_used(kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "rows.c"
    wrong.write_text(rows.SOURCE.read_text().replace("sums[m] + bias", "sums[m] - bias"))
    monkeypatch.setattr(rows, "SOURCE", wrong)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert rows.library.__wrapped__() is None  # not the cached result, which other tests use
    assert [str(w.message).split(": ")[1] for w in told] == ["the torch.float32 kernels compute wrongly here"]


def test_the_check_does_not_depend_on_how_the_caller_has_set_torch(kernels: rows.Kernels) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            for found in (rows.library, fused.library):
                assert found.__wrapped__() is not None
    finally:
        torch.set_default_dtype(torch.float32)
