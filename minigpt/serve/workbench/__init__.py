"""Answer the page of `minigpt serve`: runs as they are on disk, their processes, and what a model expected."""

from minigpt.serve.workbench.routes import Workbench

__all__ = ["Workbench"]
