"""Connect tracking tools (W&B, TensorBoard, Trackio, MLflow), each by three functions.

All tools write into the run's directory, unless their own environment variables name another place or a server. A
resumed run continues the same record; tracking.json keeps its id. Steps that a resumed run repeats are logged again:
TensorBoard hides the first values, the other tools show both.
"""

import json
import netrc
import os
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from minigpt.errors import RunError, UserError
from minigpt.files import parse_json, write_text

PROJECT = "minigpt"


class Tracker(Protocol):
    """The functions that the hook calls."""

    def start(self, config: dict[str, Any], name: str, folder: Path, step: int) -> str:
        """Begin a record, or continue this folder's record after `step`; returns its place, to be shown."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line of metrics."""
        ...

    def finish(self) -> None:
        """Write everything that is still buffered."""
        ...


def make_tracker(name: str) -> Tracker:
    """The tracker of that name. Raises UserError that names the extra if the tool is not installed."""
    kind, module = {
        "wandb": (WandB, "wandb"),
        "tensorboard": (TensorBoard, "tensorboard"),
        "trackio": (Trackio, "trackio"),
        "mlflow": (MLflow, "mlflow"),
    }[name]
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # no origin: only a folder of that name, such as W&B creates
        raise UserError(f"logging.track: {name} is not installed; install it with: pip install 'minigpt[{name}]'")
    return kind()


def kept_id(folder: Path, tool: str, make: Callable[[], str]) -> str:
    """The id of the tool's record in the run's tracking.json, made if missing. Raises StorageError, RunError."""
    path = folder / "tracking.json"
    try:
        ids = dict(parse_json(path.read_bytes())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); delete it, and {tool} starts a new record") from None
    if tool not in ids:
        ids[tool] = make()
        write_text(path, json.dumps(ids, indent=2) + "\n")
    return ids[tool]


class WandB:
    """Weights & Biases; offline if there is no key, and `wandb sync` can send the record later."""

    def start(self, config: dict[str, Any], name: str, folder: Path, step: int) -> str:
        """Begin or continue; WANDB_DIR, WANDB_PROJECT and WANDB_MODE are respected if they are set."""
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(folder)),
            mode=None if "WANDB_MODE" in os.environ or _wandb_key() else "offline",
            id=kept_id(folder, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            name=name,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own count could not go back on a resume
        if self.run.offline:
            return f"offline; later: wandb sync {Path(self.run.dir).parent}"
        return str(self.run.url)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line."""
        self.run.log({**values, "step": step})

    def finish(self) -> None:
        """Send or write what is still buffered."""
        self.run.finish()


def _wandb_key() -> bool:
    if "WANDB_API_KEY" in os.environ or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class TensorBoard:
    """Event files of TensorBoard, which stores scalars in single precision."""

    def start(self, config: dict[str, Any], name: str, folder: Path, step: int) -> str:
        """Begin or continue in the run's `tensorboard` folder; earlier values after `step` are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```", step)
        return f"tensorboard --logdir {folder.parent}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line, one scalar per key."""
        for key, value in values.items():
            if key != "step":
                self.writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Write what is still buffered."""
        self.writer.close()


class Trackio:
    """Trackio, Hugging Face's local dashboard."""

    def start(self, config: dict[str, Any], name: str, folder: Path, step: int) -> str:
        """Begin or continue in TRACKIO_DIR if it is set. Trackio reads it once per process, for all its runs."""
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").absolute()))
        import trackio  # pyright: ignore[reportMissingImports]  it is not among the extras of the tests

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        own = kept_id(folder, "trackio", lambda: f"{name}-{uuid.uuid4().hex[:4]}")
        self.run = trackio.init(project=project, name=own, resume="allow", config=config, embed=False)
        return f"TRACKIO_DIR={trackio.utils.TRACKIO_DIR} trackio show --project {project}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line."""
        self.run.log({key: value for key, value in values.items() if key != "step"}, step=step)

    def finish(self) -> None:
        """Write what is still buffered."""
        self.run.finish()


class MLflow:
    """MLflow, in MLFLOW_TRACKING_URI or a local file store (which MLflow 3 allows only on request)."""

    def start(self, config: dict[str, Any], name: str, folder: Path, step: int) -> str:
        """Begin or continue in the experiment MLFLOW_EXPERIMENT_NAME if it is set, else in `minigpt`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else MLflow sends usage data to its makers
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI", (folder / "mlruns").absolute().as_uri())
        self.client = MlflowClient(uri)

        def create() -> str:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self.client.create_experiment(experiment)
            run = self.client.create_run(number, run_name=name).info.run_id
            for section, fields in config.items():
                for field, value in fields.items():
                    self.client.log_param(run, f"{section}.{field}", str(value)[:6000])
            return run

        self.id = kept_id(folder, "mlflow", create)
        self.client.update_run(self.id, status="RUNNING")
        return f"mlflow ui --backend-store-uri {uri}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items() if key != "step"]
        self.client.log_batch(self.id, metrics)

    def finish(self) -> None:
        """Mark the record as ended."""
        self.client.set_terminated(self.id)
