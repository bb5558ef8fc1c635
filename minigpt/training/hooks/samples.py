"""Write sample texts while a run trains."""

from collections.abc import Callable
from pathlib import Path

from minigpt.errors import UserError, first_line
from minigpt.files import append_line, keep_lines, read_lines
from minigpt.runtime.device import out_of_memory
from minigpt.training.loop import Hook, Trainer


class Samples(Hook):
    """samples.jsonl: {step, prompt, text} every `every` steps and at the end.

    If a sample cannot be written (a setting of generation does not fit, a weight is NaN, memory runs out), `say` is
    called and the run continues. The guard finds bad weights.

    gathers: whether the ranks gather the model for a sample. Then the run ends if memory runs out on one of them, since
    the others wait for it.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        prompt: str,
        write: Callable[[Trainer], str | None],
        say: Callable[[str], object],
        gathers: bool = False,
    ):
        self.path, self.every, self.prompt, self.write, self.say = path, every, prompt, write, say
        self.gathers = gathers

    def on_start(self, trainer: Trainer) -> None:
        """Drop the samples after the checkpoint."""
        self.on_rollback(trainer)

    def on_rollback(self, trainer: Trainer) -> None:
        """Drop the samples after the step that the run rolled back to."""
        if trainer.runtime.ranks.rank == 0:
            keep_lines(self.path, trainer.state.step)

    def on_step(self, trainer: Trainer) -> None:
        """Write a sample when it is due."""
        if self.every and trainer.state.step % self.every == 0:
            self._sample(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Write a last sample, if there is none of this step; a killed process may have written it."""
        ranks, step = trainer.runtime.ranks, trainer.state.step
        written = ranks.rank == 0 and any(line["step"] == step for line in read_lines(self.path))
        if self.every and trainer.state.finished and not ranks.largest(float(written)):
            self._sample(trainer)

    def _sample(self, trainer: Trainer) -> None:
        try:
            with trainer.weights_to_use():
                text = self.write(trainer)
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and (self.gathers or not out_of_memory(error)):
                raise
            self.say(f"step {trainer.state.step}: no sample: {first_line(error)}")
            return
        if text is not None:  # None on all ranks except the first
            append_line(self.path, {"step": trainer.state.step, "prompt": self.prompt, "text": text})
