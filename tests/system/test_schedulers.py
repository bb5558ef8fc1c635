"""Test what docs/parallel.md shows for SLURM, Kubernetes and Ray with the real programs, if they are installed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_run import text
from parallel_run import launch
from test_docs import ROOT, blocks, unknown
from torch.distributed.run import get_args_parser

from minigpt.cli import main

PAGE = ROOT / "docs" / "parallel.md"
SLURM = next(blocks(PAGE, "bash"))
JOBSET, PYTORCHJOB = (yaml.safe_load(code) for code in blocks(PAGE, "yaml"))
JOB = JOBSET["spec"]["replicatedJobs"][0]
PODS = (JOB["template"]["spec"]["template"], PYTORCHJOB["spec"]["pytorchReplicaSpecs"]["Worker"]["template"])
CONTAINERS = [pod["spec"]["containers"][0] for pod in PODS]
KILL_ONE = '''
def work_until_killed():
    """`work`, but the second worker dies once, in the middle."""
    import os, signal, threading, time
    from pathlib import Path

    metrics, killed = Path("SHARED/runs/my/metrics.jsonl"), Path("SHARED/killed")

    def die():
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 15):
            time.sleep(0.01)
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1" and not killed.exists():
        threading.Thread(target=die, daemon=True).start()
    work()
'''


def slurm_words() -> list[str]:
    """The words of the script's torchrun."""
    line = re.search(r"^srun (torchrun .*) &$", SLURM.replace("\\\n", ""), re.M)
    assert line
    return shlex.split(line[1])


def test_torchrun_and_minigpt_know_every_flag_of_the_examples():
    for words in [slurm_words(), *(container["command"] for container in CONTAINERS)]:
        assert words[0] == "torchrun"
        asked = get_args_parser().parse_args(words[1:])
        assert (asked.module, asked.training_script, asked.nproc_per_node) == (True, "minigpt", "8")
        assert asked.training_script_args[:1] == ["train"]
        assert not list(unknown(asked.training_script_args))


def test_the_manifests_agree_with_themselves():
    name, command = JOBSET["metadata"]["name"], get_args_parser().parse_args(CONTAINERS[0]["command"][1:])
    job = JOB["template"]["spec"]
    assert command.rdzv_endpoint == f"{name}-{JOB['name']}-0-0.{name}:29400", "the first pod, as JobSet names it"
    assert command.nnodes == str(job["parallelism"]) == str(job["completions"])
    assert CONTAINERS[1]["name"] == "pytorch", "the operator sets the variables of this container"
    for pod, container in zip(PODS, CONTAINERS, strict=True):
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            each["name"] for each in pod["spec"]["volumes"]
        }
        assert container["workingDir"] in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.slow
def test_jobset_knows_every_field():
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs pip install kubeflow-trainer-api")
    assert models.JobsetV1alpha2JobSet.from_dict(JOBSET).to_dict() == JOBSET
    wrong = json.loads(json.dumps(JOBSET).replace("maxRestarts", "maxRestart"))
    assert models.JobsetV1alpha2JobSet.from_dict(wrong).to_dict() != wrong, "the check finds a wrong field"


@pytest.mark.slow
def test_pytorchjob_knows_every_field():
    client = pytest.importorskip("kubeflow.training.api_client", reason="needs pip install kubeflow-training")
    asked = type("Answer", (), {"data": json.dumps(PYTORCHJOB)})
    read = client.ApiClient().deserialize(asked, "KubeflowOrgV1PyTorchJob")
    back = json.dumps(client.ApiClient().sanitize_for_serialization(read), sort_keys=True)
    assert back.replace('gpu": "8"', 'gpu": 8') == json.dumps(PYTORCHJOB, sort_keys=True)


@pytest.mark.slow
def test_the_job_and_the_pod_fit_kubernetes_schema():
    validator = pytest.importorskip("kubernetes_validate", reason="needs pip install kubernetes-validate")
    version, named = validator.latest_version(), {"metadata": {"name": "x"}}
    validator.validate({"apiVersion": "batch/v1", "kind": "Job", **named, **JOB["template"]}, version, strict=True)
    validator.validate({"apiVersion": "v1", "kind": "Pod", **named, **PODS[1]}, version, strict=True)


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun waits or fails, and scontrol writes down its arguments."""
    for name, code in (
        ("scontrol", 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" >> asked; fi'),
        ("srun", 'echo "$@" > ran; exec sleep "${SRUN_SECONDS:-60}"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    return {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_slurm_script_requeues_itself_when_its_time_is_nearly_over(tmp_path: Path, pretended: dict[str, str]):
    (tmp_path / "job.sh").write_text(SLURM)
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=pretended)
    ran = tmp_path / "ran"
    while not (ran.exists() and ran.read_text()):  # the shell makes the file first, then it writes
        assert job.poll() is None
        time.sleep(0.01)
    assert "--rdzv-endpoint n1:29400" in ran.read_text(), "the first host's name"
    assert not (tmp_path / "asked").exists()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) != 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    failed = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=pretended | {"SRUN_SECONDS": "x"}, check=False)
    assert failed.returncode != 0, "a failed run makes the job fail"


def recipe(folder: Path, steps: int) -> Path:
    """A recipe that keeps everything in the folder; a small rate, so that the order of sums makes no large
    difference.
    """
    (folder / "cats.txt").write_text(text())
    settings = {
        "data": {"source": str(folder / "cats.txt")},
        "model": {"embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 32, "attention": "sdpa"},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
        "train": {"batch_size": 8, "max_steps": steps, "eval_every": 20, "save_every": 10, "sample_every": 0}
        | {"device": "cpu", "precision": "fp32", "compile": "off"},
        "logging": {"runs_dir": str(folder / "runs"), "plots": False, "log_every": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def gap(one: Path, two: Path) -> float:
    """The largest difference of two runs' losses; both have every step once."""
    first, second = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, two))
    assert [line["step"] for line in first] == [line["step"] for line in second] == list(range(len(first)))
    return max(
        abs(a[key] - b[key]) for a, b in zip(first, second, strict=True) for key in ("loss", "val_loss") if key in a
    )


@pytest.mark.slow
def test_ray_train_equals_one_process_after_a_worker_is_killed(tmp_path: Path):
    ray = pytest.importorskip("ray", reason='needs pip install "ray[train]"')
    pytest.importorskip("ray.train", reason='needs pip install "ray[train]"', exc_type=ImportError)
    file = recipe(tmp_path, steps=60)
    code = next(blocks(PAGE, "python")).replace("failures = ", f"{KILL_ONE}\n\nfailures = ")
    code = code.replace("TorchTrainer(work,", "TorchTrainer(work_until_killed,")
    (tmp_path / "entry.py").write_text(code.replace("SHARED", str(tmp_path)).replace("/shared", str(tmp_path)))
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "entry.py"], cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    runs = tmp_path / "runs"
    assert main(["train", str(file), "--name", "alone"]) == 0
    started = launch(2, "-m", "minigpt", "train", str(file), "--name", "torchrun", folder=tmp_path)
    assert started.returncode == 0, started.stderr
    assert steps(runs / "my") == 60
    alone, torchrun = gap(runs / "alone", runs / "my"), gap(runs / "torchrun", runs / "my")
    print(f"ray {ray.__version__}, 2 workers, one killed: losses within {alone:.1e} of one process's, ", end="")
    print(f"{torchrun:.1e} of torchrun's")
    assert max(alone, torchrun) < 1e-5


# --- SLURM itself, on two hosts: network namespaces joined by a cable ---

CLUSTER = """\
ClusterName=tiny
SlurmctldHost=n1
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
NodeName=n1 NodeAddr=10.79.0.1 CPUs=2
NodeName=n2 NodeAddr=10.79.0.2 CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES
"""
ENTER = 'hostname "$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"'


class Cluster:
    """SLURM on the hosts n1 and n2; n1 also runs the controller."""

    def __init__(self, folder: Path):
        self.folder, self.daemons, self.spaces = folder, [], {f"n{i}": f"slurm-{os.getpid()}-{i}" for i in (1, 2)}
        (folder / "slurm.conf").write_text(CLUSTER.format(folder=folder))
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.79.0.1 n1\n10.79.0.2 n2\n")

    def inside(self, host: str, *argv: str) -> list[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.spaces[host]}", "unshare", "--uts", "--mount", "sh", "-c", ENTER]
        path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
        return [*enter, host, str(self.folder / "hosts"), "env", path, f"SLURM_CONF={self.folder}/slurm.conf", *argv]

    def ask(self, *argv: str) -> str:
        """The output of a SLURM command on n1; while SLURM starts, it may be an error."""
        done = subprocess.run(self.inside("n1", *argv), cwd=self.folder, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def start(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
        munged = ["munged", "--force", "--foreground", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munged += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        links = [f"s{os.getpid() % 10**6}-{i}" for i in (1, 2)]
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "add", space], check=True)
        subprocess.run(["ip", "link", "add", links[0], "type", "veth", "peer", "name", links[1]], check=True)
        for i, space in enumerate(self.spaces.values()):
            subprocess.run(["ip", "link", "set", links[i], "netns", space], check=True)
            for words in (f"addr add 10.79.0.{i + 1}/24 dev {links[i]}", "link set lo up", f"link set {links[i]} up"):
                subprocess.run(["ip", "-n", space, *words.split()], check=True)
        daemons = [munged, self.inside("n1", "slurmctld", "-D")]
        daemons += [self.inside(host, "slurmd", "-D", "-N", host) for host in self.spaces]
        with (self.folder / "daemons.log").open("ab") as log:
            self.daemons = [subprocess.Popen(argv, stdout=log, stderr=log) for argv in daemons]
        self.until(self.idle, "both hosts are idle")

    def until(self, is_so: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            files = [self.folder / name for name in ("daemons.log", "slurm-1.out")]
            said = "\n".join(file.read_text()[-2000:] for file in files if file.exists())
            assert time.monotonic() < end, f"{what}: not in {seconds} s\n{said}"
            time.sleep(0.3)

    def job_is(self, state: str) -> bool:
        return f"JobState={state} " in self.ask("scontrol", "show", "job", "1")

    def idle(self) -> bool:
        return self.ask("sinfo", "-h", "-o", "%T %D") == "idle 2\n"

    def remove(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(60)
        for space in self.spaces.values():
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout
            for process in left.split():
                os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


@pytest.mark.slow
def test_a_slurm_job_whose_time_ends_is_requeued_and_continues(tmp_path: Path):
    if missing := [tool for tool in ("slurmctld", "slurmd", "munged", "nsenter", "ip") if not shutil.which(tool)]:
        pytest.skip(f"needs SLURM and root (apt-get install slurm-wlm munge); not here: {', '.join(missing)}")
    file = recipe(tmp_path, steps=200)
    script = SLURM.replace("--gpus-per-node=8 ", "").replace("--nproc-per-node 8", "--nproc-per-node 1")
    (tmp_path / "job.sh").write_text(script)
    cluster = Cluster(tmp_path)
    try:
        try:
            cluster.start()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        cluster.ask("sbatch", "job.sh")
        cluster.until(lambda: steps(tmp_path / "runs/my") > 50, "both hosts train")
        cluster.ask("scancel", "--batch", "--signal=USR1", "1")  # what SLURM does two minutes before the end
        cluster.until(lambda: cluster.job_is("PENDING"), "the job is back in the queue")
        saved = steps(tmp_path / "runs/my")
        cluster.until(cluster.idle, "the hosts are free")
        cluster.ask("scontrol", "update", "JobId=1", "StartTime=now")  # instead of SLURM's two minutes
        cluster.until(lambda: cluster.job_is("COMPLETED"), "the job ends")
    finally:
        cluster.remove()
    assert 50 < saved < 200
    assert f"continues from step {saved}" in (tmp_path / "slurm-1.out").read_text(), "saved when it was stopped"
    assert main(["train", str(file), "--name", "alone"]) == 0
    apart = gap(tmp_path / "runs/alone", tmp_path / "runs/my")
    print(f"SLURM, 2 hosts, requeued at step {saved}: 200 losses within {apart:.1e} of one process's")
    assert apart < 1e-4
