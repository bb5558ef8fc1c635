"""What `train` and `finetune` print once the run has ended."""

import shlex
import signal
from typing import TYPE_CHECKING

from minigpt.console import console, out, out_json

if TYPE_CHECKING:
    from minigpt.runs.train import TrainedRun


def report_run(run: "TrainedRun", json: bool) -> int:
    """Print where a run is, or one JSON object of how it ended; the exit code."""
    state = run.state
    if run.rank:  # the first of several ranks prints for all
        return 0 if not state.stop_reason.startswith("interrupted") else 143
    if json:
        out_json(
            {
                "run": str(run.path),
                "step": state.step,
                "seconds": round(state.seconds, 3),
                "stop_reason": state.stop_reason,
                "val_loss": state.val_loss,
                "best_loss": state.best_loss,
                "best_step": state.best_step,
                "epochs": run.epochs,
            }
        )
    else:
        out(str(run.path))
    stopped = state.stop_reason.startswith("interrupted")
    if not json and not stopped:
        prompt = run.config.train.sample_prompt.strip() or "Once upon a time"
        path = shlex.quote(str(run.path))
        quoted = shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'
        console.print(
            f"Next: minigpt generate {path} --prompt {quoted}\n"
            f"      minigpt chat {path}\n      minigpt eval {path}\n      minigpt explain {path}",
            markup=False, highlight=False,
        )  # fmt: skip
    if stopped:
        console.print("saved; the same command continues")
        return 128 + getattr(signal, state.stop_reason.split()[-1], signal.SIGTERM)
    return 0
