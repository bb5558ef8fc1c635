"""Watch, stop and resume the processes that train runs.

A run is stopped by the signal that the command knows (SIGTERM: it ends after the current step and saves). A run is
resumed by the command, in its own process, which continues even if the server ends.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from minigpt.console import harmless, own_group, passed_on
from minigpt.errors import RunError, UserError, storage_error
from minigpt.layout import RunFolder
from minigpt.runs.lock import holder, last_holder
from minigpt.runs.record import RunRecord

LAST = 4000
"""If a process fails, this many bytes of its output are read."""


def usage_of(pid: int) -> dict[str, float] | None:
    """{"bytes": memory, "seconds": of the processor, so far}; None if the system does not say."""
    folder = Path("/proc") / str(pid)
    try:
        fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        pages = int((folder / "statm").read_text(encoding="utf-8").split()[1])
        ticks = int(fields[11]) + int(fields[12])
        return {"bytes": pages * os.sysconf("SC_PAGE_SIZE"), "seconds": ticks / os.sysconf("SC_CLK_TCK")}
    except (OSError, ValueError, IndexError):
        return None


def resume_words(run: RunRecord) -> list[str]:
    """The command that continues a run, without its first word."""
    verb = "train" if run.config.finetune.base is None else "finetune"
    place = ["--name", run.path.name, "--logging.runs-dir", str(run.path.parent)]
    return [verb, str(run.folder.config), *place]


def command(*words: str) -> list[str]:
    """One of our commands, to run as its own process."""
    return [sys.executable, "-m", "minigpt", *words]


class Started:
    """The processes that this server started, by the directory of their run. Requests of several tabs ask at once."""

    def __init__(self) -> None:
        self._started: dict[Path, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        self._failed: dict[Path, str] = {}  # the last line of those that have ended; "" after a success
        self._asking = threading.RLock()

    def resume(self, run: RunRecord) -> None:
        """Continue a run. Raises UserError if it is trained already, or has nothing left to do."""
        if self.status(run.path)["starting"] or run.state != "interrupted":
            why = "it has come to its end" if run.state == "finished" else "a process trains it now"
            raise UserError(f"{run.name} cannot be resumed: {why}")
        self.begin(run.path, resume_words(run))

    def begin(self, path: Path, words: list[str]) -> None:
        """Start a command that trains the run at a path. It continues even if the server ends.

        Raises RunError if a process is already starting this run, StorageError if its output cannot be written.
        """
        with self._asking:
            if self.status(path)["starting"]:
                raise RunError(f"a run {path.name} is starting; choose another name")
            try:
                said = tempfile.TemporaryFile()  # noqa: SIM115  the process writes to it until it ends
            except OSError as error:
                raise storage_error("a run's output", error, "name another place with TMPDIR") from None
            process = subprocess.Popen(
                command(*words), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                start_new_session=True, creationflags=own_group(),
            )  # fmt: skip
            self._started[path] = (process, said)

    def stop(self, run: RunRecord) -> None:
        """Ask the process that trains a run to end after the current step and save. Raises UserError if there is none.

        In a virtual environment on Windows, python.exe starts the real Python, which holds the lock. Ctrl-Break reaches
        both only by the number of the first, since it leads their group.
        """
        pid = holder(run.folder.lock)
        if pid is None:
            raise UserError(f"no process of this machine trains {run.name} now; reload the page to see how it ended")
        ours = self._started.get(run.path)
        if ours and ours[0].poll() is None:
            pid = ours[0].pid
        try:
            os.kill(pid, passed_on(signal.SIGTERM))
        except ProcessLookupError:
            raise UserError(f"{run.name} has just ended; reload the page") from None
        except OSError:  # on Windows, Ctrl-Break reaches only what was started here
            raise UserError(f"{run.name} is trained by another user or window; stop it there with Ctrl-C") from None

    def status(self, path: Path) -> dict[str, Any]:
        """{"starting": whether a process is starting the run, "failed": its last line if it ended with an error}.

        Ask before `run.state`: if the process takes the lock between the two, the run is then running, not interrupted.
        """
        with self._asking:
            if path not in self._started:
                return {"starting": False, "failed": self._failed.get(path, "")}
            process, said = self._started[path]
            if process.poll() is None:  # a process that had the lock has trained, and is about to end
                return {"starting": last_holder(RunFolder(path).lock) != process.pid, "failed": ""}
            del self._started[path]  # a server that runs for weeks starts more runs than it may have open files
            with said:
                said.seek(max(0, said.seek(0, os.SEEK_END) - LAST))
                failed = last_line(said.read(), process.returncode) if process.returncode else ""
            self._failed[path] = failed.removeprefix("minigpt: ")
            return {"starting": False, "failed": self._failed[path]}

    def without_a_run(self, known: Collection[Path]) -> list[dict[str, Any]]:
        """The processes whose run is not on the disk (not yet, or it never will be): {"name", "starting", "failed"}."""
        begun = {**self._started, **self._failed}
        found = [{"name": path.name} | self.status(path) for path in begun if path not in known]
        return [each for each in found if each["starting"] or each["failed"]]


def last_line(said: bytes, code: int) -> str:
    """The last line of a process's output."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return harmless(lines[-1].strip()) if lines else f"the process ended with code {code}"
