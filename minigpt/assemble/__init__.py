"""The composition root: config -> objects. Build and train a run, load a run."""

from minigpt.assemble.data import make_tokenizer, prepare_data
from minigpt.assemble.load import LoadedRun, load_run
from minigpt.assemble.run import TrainedRun, tiny, train

__all__ = ["LoadedRun", "TrainedRun", "load_run", "make_tokenizer", "prepare_data", "tiny", "train"]
