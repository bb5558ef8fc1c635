"""Execute each notebook N_name.py (jupytext, percent format) and write N_name.ipynb with its outputs.

    python notebooks/build.py            all (`make notebooks`)
    python notebooks/build.py 2 5        some, by their numbers

Each runs in a fresh kernel and an empty folder. It sees no settings, caches or data of this machine, so its outputs
depend only on its source. An error stops it and is shown with its cell; then nothing is written.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources() -> list[Path]:
    """The source files, in order."""
    return sorted(HERE.glob("[0-9]_*.py"))


def read(source: Path) -> NotebookNode:
    """The notebook of a source file, without outputs; the same source always gives the same notebook."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> float:
    """Run all cells in a fresh kernel, which works in folder/here; the outputs go into the notebook.

    Returns:
        seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: an error in a cell, with its code.
    """
    (folder / "here").mkdir()
    own = {f"MINIGPT_{name}": str(folder / name.lower()) for name in ("CACHE", "CONFIG")}
    unset = ("MINIGPT_DATA", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    # so that pictures hold no date
    env = kept | own | {"IPYTHONDIR": str(folder / "ipython"), "SOURCE_DATE_EPOCH": "0"}
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning about unencrypted TCP
        resources={"metadata": {"path": str(folder / "here")}},
    )
    start = time.perf_counter()
    client.execute(env=env)
    notebook.metadata = nbformat.from_dict(METADATA)
    return time.perf_counter() - start


def main(numbers: list[str]) -> None:
    """Execute and write the notebooks with these numbers; without numbers, all of them."""
    for source in sources():
        if numbers and source.name[0] not in numbers:
            continue
        notebook = read(source)
        with tempfile.TemporaryDirectory() as folder:
            seconds = execute(notebook, Path(folder))
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{target.name}: {seconds:.0f} s, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
