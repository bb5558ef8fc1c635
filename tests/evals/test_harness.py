"""Test tasks of lm-evaluation-harness: figures equal `minigpt eval`'s, our logits', and the harness' own models'."""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import fails, json_of
from page_run import SHAPES, TEXT, make_run, save_run
from served import served

from minigpt import evaluate_tasks, export_huggingface, generate_text, load_run
from minigpt.cli import main
from minigpt.config import TokenizerConfig
from minigpt.evals import evaluate
from minigpt.tokenizers import build

QUESTIONS = [
    {"question": f"the {ask}", "choices": ["sat on a mat", "went round", "said why"], "answer": at % 3}
    for at, ask in enumerate(("cat", "old mill", "dog", "mat", "Zoë", "cat sat", "42 times", "dog sat on a mat"))
]
WORDS = """import re


def counted(doc, results):
    (nats,) = results
    text = doc["text"]
    words, size = len(text.split()) + text.count("\\n"), len(text.encode())
    return {"word_perplexity": (nats, words), "byte_perplexity": (nats, size), "bits_per_byte": (nats, size)}
"""
"""Counts words as `minigpt eval` does: pieces between white space, and the ends of lines."""


@pytest.fixture
def harness() -> None:
    """Skip if the extra is not installed."""
    pytest.importorskip("lm_eval", reason="needs pip install 'minigpt[lm-eval]'")


def task(folder: Path, name: str, kind: str, rows: list[dict[str, Any]] | str, **more: Any) -> str:
    """A task file with its data next to it; JSON is also YAML."""
    data = folder / f"{name}.{'txt' if isinstance(rows, str) else 'jsonl'}"
    data.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows), newline="")
    source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    if isinstance(rows, str):
        source["sample_by"] = "document"
    tree = {"task": name, "dataset_path": "text" if isinstance(rows, str) else "json", "dataset_kwargs": source}
    tree |= {"test_split": "test", "output_type": kind} | more
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(tree))
    return str(file)


def rolling(folder: Path, text: str) -> str:
    """A task of one whole text, with our count of words."""
    (folder / "words.py").write_text(WORDS)
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    file = task(
        folder, "whole", "loglikelihood_rolling", text, doc_to_text="", doc_to_target="{{text}}", metric_list=metrics
    )
    tree = Path(file).read_text()
    Path(file).write_text(tree[:-1] + ", process_results: !function words.counted}")
    return file


def choices(folder: Path) -> str:
    return task(
        folder, "questions", "multiple_choice", QUESTIONS, doc_to_text="{{question}}", doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}", metric_list=[{"metric": "acc"}],
    )  # fmt: skip


def asked(folder: Path, rows: list[dict[str, Any]]) -> str:
    return task(
        folder, "asked", "generate_until", rows, doc_to_text="{{prompt}}", doc_to_target="{{answer}}",
        generation_kwargs={"until": ["a", "\n"], "max_gen_toks": 12, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip


def figures(report: dict[str, Any], name: str) -> dict[str, Any]:
    return {key.removesuffix(",none"): value for key, value in report["results"][name].items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_whole_text_has_the_figures_of_eval(
    harness: None, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build(TokenizerConfig(kind=kind, vocab_size=300), [TEXT])  # type: ignore[arg-type]
    run = save_run(tmp_path / "run", tokenizer, SHAPES["modern"] | {"init_std": 0.02}, {})
    text = TEXT * 20
    (tmp_path / "all.txt").write_text(text)
    ours = json_of(capsys, "eval", run, "--data", tmp_path / "all.txt")
    file = rolling(tmp_path, text[int(0.9 * len(text)) :])
    theirs = figures(json_of(capsys, "eval", run, "--tasks", file), "whole")
    assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-3)
    assert theirs["byte_perplexity"] == pytest.approx(2 ** ours["bits_per_byte"], rel=1e-3)
    assert np.log(theirs["word_perplexity"]) == pytest.approx(np.log(ours["word_perplexity"]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_rolling_windows_are_ours_after_the_end_of_text(harness: None, tmp_path: Path, kind: str) -> None:
    run = load_run(make_run(tmp_path / "run", "gpt2", kind), "cpu")
    begins, context = [] if run.tokenizer.eos_id is None else [run.tokenizer.eos_id], 40
    ids = begins + run.tokenizer.encode(TEXT)
    size = 1 + (len(ids) - 1) // context * context  # whole windows
    text = run.tokenizer.decode(ids[:size])
    assert begins + run.tokenizer.encode(text) == ids[:size]
    expected = evaluate(run.model, np.array(ids[:size]), context=context, runtime=run.runtime).nats.sum()
    found = figures(evaluate_tasks(run, [rolling(tmp_path, text)]), "whole")
    assert found["bits_per_byte"] == pytest.approx(expected / np.log(2) / len(text.encode()), rel=1e-6)


@pytest.mark.slow
def test_choices_are_scored_by_our_logits(harness: None, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", "modern", "bpe"), "cpu")
    right = 0
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:
            before, ids = (run.tokenizer.encode(text) for text in (row["question"], f"{row['question']} {choice}"))
            with torch.inference_mode():
                logp = run.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
            scores.append(sum(logp[at - 1, ids[at]].item() for at in range(len(before), len(ids))))
        right += int(np.argmax(scores)) == row["answer"]
    report = evaluate_tasks(run, ["questions"], include_path=choices(tmp_path).rpartition("/")[0])
    assert figures(report, "questions")["acc"] == pytest.approx(right / len(QUESTIONS))
    assert 0 < right < len(QUESTIONS)
    assert report["n-samples"]["questions"]["effective"] == len(QUESTIONS)


@pytest.mark.slow
def test_answers_end_at_a_stop_text(harness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path / "run", "modern", "char")
    run = load_run(path, "cpu")
    prompts = [row["question"] for row in QUESTIONS]
    told = [
        generate_text(run.model, prompt, run.tokenizer, temperature=0.0, max_new_tokens=12, stop=["a", "\n"])
        for prompt in prompts
    ]
    assert any(len(text) < 12 for text in told)
    rows = [
        {"prompt": prompt, "answer": text if at % 4 else "no"}
        for at, (prompt, text) in enumerate(zip(prompts, told, strict=True))
    ]
    assert main(["eval", str(path), "--tasks", asked(tmp_path, rows)]) == 0
    lines = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["task", "metric", "filter", "shots", "documents", "value", "±"]
    assert lines[3][:2] + lines[3][-3:-1] == ["asked", "exact_match", "8", "0.7500"]


@pytest.mark.slow
def test_the_harness_own_model_of_the_export_agrees(harness: None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    run = load_run(make_run(tmp_path / "run", "modern", "bpe"), "cpu")
    exported = export_huggingface(run, tmp_path / "theirs").path
    rows = [{"prompt": row["question"], "answer": ""} for row in QUESTIONS]
    files = [rolling(tmp_path, TEXT), choices(tmp_path), asked(tmp_path, rows)]
    ours = evaluate_tasks(run, files)
    model = HFLM(str(exported), device="cpu", dtype="float32", batch_size=4, prefix_token_id=run.tokenizer.eos_id)
    theirs = simple_evaluate(
        model, tasks=files, task_manager=TaskManager(include_defaults=False), log_samples=False, bootstrap_iters=0
    )
    for name in ("whole", "questions", "asked"):
        expected = figures(theirs, name)
        for metric, value in figures(ours, name).items():
            if not metric.endswith("stderr") and isinstance(value, float):
                assert np.log1p(value) == pytest.approx(np.log1p(expected[metric]), rel=1e-5), (name, metric)
    with_examples = evaluate_tasks(run, [choices(tmp_path)], num_fewshot=2)
    theirs = simple_evaluate(
        model, tasks=[choices(tmp_path)], task_manager=TaskManager(include_defaults=False), num_fewshot=2,
        bootstrap_iters=0,
    )  # fmt: skip
    told = [sample["arguments"][0][0] for sample in theirs["samples"]["questions"]]
    assert all(text.count("\n\n") == 2 for text in told)  # two solved questions come before each
    assert with_examples["n-shot"]["questions"] == 2
    assert figures(with_examples, "questions")["acc"] == figures(theirs, "questions")["acc"]


@pytest.mark.slow
def test_its_client_of_our_server_has_the_figures_of_eval(
    harness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("fastapi", "uvicorn", "transformers", "aiohttp", "tenacity"):
        pytest.importorskip(package, reason="needs the extra serve, and pip install 'lm_eval[api]'")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tokenizer = build(TokenizerConfig(kind="bpe", vocab_size=300), [TEXT])
    path = save_run(tmp_path / "runs/my", tokenizer, SHAPES["modern"] | {"max_seq_len": 130, "init_std": 0.05}, {})
    exported = export_huggingface(run := load_run(path, "cpu"), tmp_path / "exported").path
    text = TEXT * 200  # long, so that the first token, which eval does not predict, changes little
    (tmp_path / "all.txt").write_text(text)
    window = 128  # the harness reserves one position before a window, and one after it
    ours = json_of(capsys, "eval", path, "--data", tmp_path / "all.txt", "--context", window)
    rows = [{"prompt": row["question"], "answer": ""} for row in QUESTIONS]
    files = [rolling(tmp_path, text[int(0.9 * len(text)) :]), choices(tmp_path), asked(tmp_path, rows)]
    with served(tmp_path / "runs") as address:
        theirs = simple_evaluate(
            "local-completions",
            model_args={
                "model": "my", "base_url": f"{address}/v1/completions", "tokenizer": str(exported), "max_length": 130,
                "batch_size": 8,
            },
            tasks=files, task_manager=TaskManager(include_defaults=False), log_samples=False, bootstrap_iters=0,
        )  # fmt: skip
    found = figures(theirs, "whole")
    print(f"\nword perplexity: {found['word_perplexity']} by the server, {ours['word_perplexity']} by eval")
    assert np.log(found["word_perplexity"]) == pytest.approx(np.log(ours["word_perplexity"]), abs=1e-3)
    assert found["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-3)
    own = evaluate_tasks(run, files[1:])
    assert figures(theirs, "questions")["acc"] == figures(own, "questions")["acc"]
    assert figures(theirs, "asked")["exact_match"] == figures(own, "asked")["exact_match"]


@pytest.mark.slow
def test_wikitext_has_the_figures_of_eval(
    harness: None, tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (mirror / "wikitext-2/test.txt").read_text(encoding="utf-8")
    tokenizer = build(TokenizerConfig(kind="bpe", vocab_size=1000), [text[:200_000]])
    shape = {"max_seq_len": 128, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "init_std": 0.05}
    run = save_run(tmp_path / "run", tokenizer, shape, {})
    ours = json_of(capsys, "eval", run, "--data", "wikitext-2", "--split", "test")
    theirs = figures(evaluate_tasks(load_run(run, "cpu"), [rolling(tmp_path, text)]), "whole")
    assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-3)
    assert theirs["byte_perplexity"] == pytest.approx(2 ** ours["bits_per_byte"], rel=1e-3)
    assert np.log(theirs["word_perplexity"]) == pytest.approx(np.log(ours["word_perplexity"]), abs=1e-3)


def test_a_missing_package_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run = str(make_run(tmp_path / "run"))
    fails(capsys, ["eval", run, "--tasks", "mine.yaml"], "pip install 'minigpt[lm-eval]'")
    fails(capsys, ["eval", run, "--tasks", "mine.yaml", "--data", "x.txt"], "--data: not with --tasks")
    fails(capsys, ["eval", run, "--limit", "3"], "--limit: only with --tasks")


@pytest.mark.slow
def test_one_task_need_not_be_a_list_and_random_numbers_are_the_callers(harness: None, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", "modern", "bpe"), "cpu")
    before = random.getstate(), np.random.get_state()[1].tolist()
    assert evaluate_tasks(run, choices(tmp_path))["n-samples"]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.slow
def test_wrong_tasks_are_told(harness: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "run"))
    fails(capsys, ["eval", run, "--tasks", "lambada_opena"], "no task is called lambada_opena", "lambada_openai")
    fails(capsys, ["eval", run, "--tasks", ","], "no task is named")
    fails(capsys, ["eval", run, "--tasks", "x", "--batch-size", "-1"], "batch size -1 is not positive")
    fails(capsys, ["eval", run, "--tasks", "x", "--include-path", str(tmp_path / "none")], "is not a folder")
    gone = choices(tmp_path)
    (tmp_path / "questions.jsonl").unlink()
    fails(capsys, ["eval", run, "--tasks", gone], "the harness cannot run the task", "questions.jsonl")
    (tmp_path / "broken.yaml").write_text("task: [")
    fails(capsys, ["eval", run, "--tasks", str(tmp_path / "broken.yaml")], "the harness cannot run the task")
    lacking = json.loads(Path(asked(tmp_path, [{"prompt": "the", "answer": "cat"}])).read_text())
    (tmp_path / "lacking.yaml").write_text(json.dumps(lacking | {"doc_to_text": "{{nothing.at.all}}"}))
    fails(capsys, ["eval", run, "--tasks", str(tmp_path / "lacking.yaml")], "UndefinedError: 'nothing' is undefined")
    odd = json.loads(Path(asked(tmp_path, [{"prompt": "the", "answer": "cat"}])).read_text())
    odd["generation_kwargs"] = {"until": ["."], "penalty": 3}
    (tmp_path / "odd.yaml").write_text(json.dumps(odd))
    fails(capsys, ["eval", run, "--tasks", str(tmp_path / "odd.yaml")], "penalty is not a setting of minigpt")
