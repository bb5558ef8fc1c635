"""Print the result of `train` and `finetune` when the run has ended."""

import shlex
import signal
from typing import TYPE_CHECKING

from minigpt.console import headline, out, out_json, scored_on, tell
from minigpt.layout import RunFolder

if TYPE_CHECKING:
    from minigpt.runs.train import TrainedRun


def headline_of(run: "TrainedRun") -> str:
    """Bits per byte of the best checkpoint, what they were measured on, and the floors; "" if there are none."""
    from minigpt.runs.record import read_run

    if run.report:
        from minigpt.evals.report import report_headline

        return report_headline(run.report)
    best = read_run(run.path).best
    if "bits_per_byte" not in best:
        return ""
    return headline(best["bits_per_byte"], best["step"], scored_on("val", run.config.train.eval_batches))


def report_run(run: "TrainedRun", json: bool) -> int:
    """Print where a run is, or one JSON object with its result; returns the exit code."""
    state = run.state
    if run.rank:  # the first rank prints for all
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
                "bits_per_byte": run.report and run.report["bits_per_byte"],
            }
        )
    else:
        if line := headline_of(run):
            tell(line)
        out(str(run.path))
    stopped = state.stop_reason.startswith("interrupted")
    if not json and not stopped:
        tell(_next(run))
    if stopped:
        tell("saved; the same command continues")
        return 128 + getattr(signal, state.stop_reason.split()[-1], signal.SIGTERM)
    return 0


def _next(run: "TrainedRun") -> str:
    """The commands to try next with a run; a run that learned chats begins with chat."""
    path = shlex.quote(run.path.as_posix())  # with /, so that no shell of Windows needs quotes
    chat, others = f"minigpt chat {path}", f"      minigpt eval {path}\n      minigpt explain {path}"
    if RunFolder(run.path).template.is_file():
        return f"Next: {chat}\n{others}"
    prompt = run.config.train.sample_prompt.strip() or "Once upon a time"
    quoted = shlex.quote(prompt) if set(prompt) & set('"$`\\!') else f'"{prompt}"'
    return f"Next: minigpt generate {path} --prompt {quoted}\n      {chat}\n{others}"
