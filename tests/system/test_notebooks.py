"""Test the notebooks: each .ipynb is its source with clean outputs, every exercise has a tested answer, and all run.

The answers are cells of the notebook with assertions, so a notebook that runs has proved them.
"""

import copy
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("notebooks_build", ROOT / "notebooks" / "build.py")
assert _spec and _spec.loader
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

ANSWER = "exercise-answer"
EXERCISES, MOST_BYTES = 3, 300_000
HEADING = re.compile(r"#+ Exercise (\d+)")
PLACE = re.compile(r"(?:^|[\s'\"(=])(/(?:home|root|tmp|work|Users|opt|usr)/|[A-Z]:\\)")
notebook = pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)


def out_of_step(source: NotebookNode, built: NotebookNode) -> Iterator[str]:
    """The places where an .ipynb differs from its source."""
    pairs = [[(cell.cell_type, cell.source, cell.metadata) for cell in one.cells] for one in (source, built)]
    if len(pairs[0]) != len(pairs[1]):
        yield f"{len(pairs[1])} cells, {len(pairs[0])} in the source"
    for number, (wanted, found) in enumerate(zip(*pairs, strict=False)):
        if wanted != found:
            yield f"cell {number} is not the source's"


def unclean(built: NotebookNode) -> Iterator[str]:
    """Problems of outputs: what they must not contain, or must contain."""
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != [*range(1, len(code) + 1)]:
        yield "not executed once, in order"
    outputs = [output for cell in code for output in cell.outputs]
    if not any("image" in kind for output in outputs for kind in output.get("data", {})):
        yield "no picture"
    for output in outputs:
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"{output.output_type} {output.get('ename', 'on stderr')}"
        said = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        if place := PLACE.search(said):
            yield f"a place on a machine: {place[1]}"


def unanswered(built: NotebookNode) -> Iterator[str]:
    """Exercises without an answer that checks itself."""
    asked = 0
    for cell, after in zip(built.cells, [*built.cells[1:], None], strict=True):
        if cell.cell_type != "markdown" or not (heading := HEADING.match(cell.source)):
            continue
        asked += 1
        if int(heading[1]) != asked:
            yield f"exercise {heading[1]} is number {asked}"
        if after is None or ANSWER not in after.metadata.get("tags", []):
            yield f"exercise {asked} has no answer"
        elif "assert" not in after.source:
            yield f"the answer of exercise {asked} proves nothing"
    if asked < EXERCISES:
        yield f"{asked} exercises"


def problems(source: NotebookNode, built: NotebookNode) -> list[str]:
    """All problems of a notebook."""
    return [*out_of_step(source, built), *unclean(built), *unanswered(built)]


@notebook
def test_is_its_source_with_clean_outputs_and_answered_exercises(source: Path):
    target = source.with_suffix(".ipynb")
    built = nbformat.read(target, as_version=4)
    nbformat.validate(built)
    assert problems(build.read(source), built) == [], f"make notebooks writes {target.name} again"
    assert target.stat().st_size < MOST_BYTES


def test_six_notebooks_and_nothing_else():
    assert [source.name[0] for source in build.sources()] == [*"123456"]
    made = {source.with_suffix(".ipynb") for source in build.sources()}
    assert set((ROOT / "notebooks").glob("*.ipynb")) == made


def _tag(cells: list[NotebookNode]) -> NotebookNode:
    return next(cell for cell in cells if ANSWER in cell.metadata.get("tags", []))


def _first(cells: list[NotebookNode], kind: str) -> NotebookNode:
    return next(cell for cell in cells if cell.cell_type == kind)


def _exercises(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [cell for cell in cells if HEADING.match(cell.source)]


def _say(cells: list[NotebookNode], **output: str) -> None:
    _first(cells, "code").outputs.append(nbformat.from_dict({"output_type": "stream", "name": "stdout"} | output))


def _blind(cells: list[NotebookNode]) -> None:
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if "data" not in output]


FAULTS: dict[str, Callable[[list[NotebookNode]], object]] = {
    "not the source's": lambda cells: _first(cells, "markdown").update(source="Another text"),
    "in the source": lambda cells: cells.pop(0),
    "not executed": lambda cells: _first(cells, "code").update(execution_count=None),
    "no picture": _blind,
    "on stderr": lambda cells: _say(cells, name="stderr", text="a warning"),
    "a place on a machine": lambda cells: _say(cells, text="written to /tmp/xyz"),
    "has no answer": lambda cells: _tag(cells).metadata.pop("tags"),
    "proves nothing": lambda cells: _tag(cells).update(source="print(1)"),
    "exercise 3 is number 2": lambda cells: cells.remove(_exercises(cells)[1]),
    "2 exercises": lambda cells: [cells.remove(cell) for cell in _exercises(cells)[2:]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str):
    first = build.sources()[0]
    source, built = build.read(first), nbformat.read(first.with_suffix(".ipynb"), as_version=4)
    broken = copy.deepcopy(built)
    FAULTS[fault](broken.cells)
    assert any(fault in problem for problem in problems(source, broken))


@pytest.mark.slow
def test_an_answer_that_is_wrong_stops_a_notebook(tmp_path: Path):
    (tmp_path / "1_wrong.py").write_text("# %% [markdown]\n# Exercise\n\n# %%\nassert 1 + 1 == 3\n")
    with pytest.raises(CellExecutionError, match=r"assert 1 \+ 1 == 3"):
        build.execute(build.read(tmp_path / "1_wrong.py"), tmp_path)


@pytest.mark.slow
@notebook
def test_runs_in_a_fresh_kernel_and_leaves_nothing_behind(source: Path, tmp_path: Path):
    fresh = build.read(source)
    seconds = build.execute(fresh, tmp_path)
    print(f"\n{source.name}: {seconds:.0f} s")
    assert list(unclean(fresh)) == []
    assert [*(tmp_path / "here").iterdir()] == []
