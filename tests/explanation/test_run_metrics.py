"""Test metrics of runs as arrays, and the pictures drawn from them."""

import itertools
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.cli import plot as command
from minigpt.errors import RunError, StorageError, UserError
from minigpt.explanation import last_values, plot_runs, read_metrics, smooth
from minigpt.explanation.metrics import footnote, read_floors
from minigpt.explanation.run_plots import draw_runs, short_names


def write_run(folder: Path, lines: list[dict], end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + end)
    return folder


def falling(steps: int = 30, floor: float = 1.5) -> list[dict]:
    lines = []
    for step in range(10, 10 * steps + 1, 10):
        line = {"step": step, "tokens": 512 * step, "seconds": 0.5 * step, "loss": floor + 20 / (step + 5), "lr": 1e-3}
        lines.append(line | ({"val_loss": line["loss"] + 0.1, "bits_per_byte": 2.0} if step % 100 == 0 else {}))
    return lines


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "mine", falling())


def test_metrics_are_arrays_of_one_length_with_nan_for_missing_keys(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0, "val_loss": 2.5},
        {"step": 3, "loss": None, "note": "x"},
    ]
    metrics = read_metrics(write_run(tmp_path / "a", lines))
    assert set(metrics) == {"step", "loss", "val_loss"}
    assert metrics["step"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(metrics["loss"], [3, 2, math.nan])
    np.testing.assert_array_equal(metrics["val_loss"], [math.nan, 2.5, math.nan])


def test_steps_logged_twice_by_a_resumed_run_count_once_the_later_one(tmp_path):
    lines = [{"step": 1, "loss": 3}, {"step": 2, "loss": 9}, {"step": 3, "loss": 9}, {"step": 2, "loss": 2}]
    metrics = read_metrics(write_run(tmp_path / "a", [*lines, {"step": 2, "val_loss": 2.5}, {"step": 3, "loss": 1}]))
    assert metrics["step"].tolist() == [1, 2, 3] and metrics["loss"].tolist() == [3, 2, 1]
    assert metrics["val_loss"][1] == 2.5


@pytest.mark.parametrize("cut", ["", "{", '{"step": 4, "lo', '{"loss": 2}'])
def test_a_half_written_last_line_is_left_out(tmp_path, cut):
    assert read_metrics(write_run(tmp_path / "a", falling(3), end="\n" + cut))["step"].tolist() == [10, 20, 30]


@pytest.mark.parametrize("damaged", ["{", "[1]", "3", '{"loss": 2}', '{"step": "x"}', "\xff"])
def test_a_damaged_line_is_named_by_its_number(tmp_path, damaged):
    folder = write_run(tmp_path / "a", falling(2))
    text = (folder / "metrics.jsonl").read_text()
    for whole, number in ((text + damaged + "\n", 3), (damaged + "\n" + text, 1)):
        (folder / "metrics.jsonl").write_bytes(whole.encode("latin-1"))
        with pytest.raises(RunError, match=f"line {number}: damaged"):
            read_metrics(folder)


def test_a_missing_run_and_a_run_without_metrics_differ_in_the_message(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "config.yaml").touch()
    with pytest.raises(RunError, match=r"no such run.*did you mean .*mine\?"):
        read_metrics(run.parent / "mien")
    with pytest.raises(RunError, match=r"no such run.* holds mine$"):
        read_metrics(tmp_path / "elsewhere" / "x")
    with pytest.raises(RunError, match=r"no metrics in .*metrics\.jsonl"):
        read_metrics(tmp_path)
    (run / "metrics.jsonl").write_text('{"step"')
    with pytest.raises(RunError, match="no metrics yet"):
        read_metrics(run)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 40))
def test_smooth_is_the_mean_over_a_centred_window(values, width):
    half = max(width, 1) // 2
    for i, mean in enumerate(smooth(np.array(values), width)):
        reach = min(half, i, len(values) - 1 - i)
        assert mean == pytest.approx(np.mean(values[i - reach : i + reach + 1]), abs=1e-9)


def test_the_state_of_a_run(run, tmp_path):
    line = falling()[-1]
    stands = last_values(write_run(run, [*falling(), {"step": 310, "loss": 1.0}, {"step": 320, "val_loss": 9.0}]))
    assert stands == {"step": 320, "loss": 1.0, "val_loss": 9.0, "best_val_loss": line["val_loss"], "best_step": 300}
    bare = last_values(write_run(tmp_path / "bare", [{"step": 1, "lr": 0.1}]))
    assert bare == {"step": 1, "loss": None, "val_loss": None, "best_val_loss": None, "best_step": None}


HUGE = f'{{"tokens": 1, "bytes": 1, "floors": {{"xz": 1{"0" * 400}}}}}'


def test_floors_become_nats_per_token_of_the_run(run):
    assert read_floors(run) == {}
    (run / "eval.json").write_text(json.dumps({"tokens": 100, "bytes": 400, "floors": {"xz": 2.0}}))
    assert read_floors(run)["xz"] == pytest.approx(2 * math.log(2) * 400 / 100)
    assert read_floors(run, bits=True) == {"xz": 2.0}
    for damaged in (
        "{",
        "[]",
        '{"tokens": 0, "bytes": 1, "floors": {}}',
        '{"floors": {}}',
        HUGE,
        '{"tokens": 1, "bytes": 1, "floors": {"xz": []}}',
    ):
        (run / "eval.json").write_text(damaged)
        with pytest.raises(RunError, match=r"eval\.json.*--save"):
            read_floors(run)


def drawn(axes, colour: str):
    """(raw, mean, validation) lines of one run."""
    raw, mean, validation = [line for line in axes.get_lines() if line.get_color() == colour]
    return raw.get_xydata(), mean.get_xydata(), validation.get_xydata()


def test_the_picture_shows_the_numbers(run):
    metrics = read_metrics(run)
    figure = draw_runs(["mine"], [[metrics]], {})
    there = np.isfinite(metrics["val_loss"])
    for axes, scale in zip(figure.axes, (lambda x: x, np.exp), strict=True):
        raw, mean, validation = drawn(axes, "#0072b2")
        np.testing.assert_allclose(raw, np.stack([metrics["step"], scale(metrics["loss"])], 1))
        np.testing.assert_allclose(mean[:, 1], scale(smooth(metrics["loss"], 0)))
        np.testing.assert_allclose(validation, np.stack([metrics["step"][there], scale(metrics["val_loss"][there])], 1))
        assert [text.get_text() for text in axes.texts] == [f"{scale(metrics['val_loss'][there][-1]):.2f}"]


def test_the_horizontal_axis_counts_what_was_asked(run):
    metrics = read_metrics(run)
    for x, expected in (("tokens", metrics["tokens"]), ("minutes", metrics["seconds"] / 60)):
        raw, *_ = drawn(draw_runs(["mine"], [[metrics]], {}, x).axes[0], "#0072b2")
        np.testing.assert_allclose(raw[:, 0], expected)
    del metrics["tokens"]
    with pytest.raises(UserError, match="mine has not logged tokens"):
        draw_runs(["mine"], [[metrics]], {}, "tokens")


def test_floors_in_sight_are_drawn_and_the_entropy_is_brought_into_sight(run):
    floors = {"uniform": 99.0, "five_gram": 1.8, "xz": 1.79, "entropy": 0.5, "surprisal": 0.51}
    left, right = draw_runs(["mine"], [[read_metrics(run)]], {"loss": floors}).axes
    names = [text.get_text() for text in left.texts[:-1]]
    assert names == ["5-gram 1.80", "xz 1.79", "entropy of the source 0.50"]
    assert left.texts[0].get_verticalalignment() != left.texts[1].get_verticalalignment()  # two names that are too near
    assert left.get_ylim()[0] < 0.5
    assert len(right.texts) == 1


def test_the_next_floor_that_the_curves_have_not_reached_is_brought_into_sight(run):
    floors = {"uniform": 99.0, "five_gram": 1.2, "xz": 1.0}
    left, _ = draw_runs(["mine"], [[read_metrics(run)]], {"loss": floors}).axes
    assert [text.get_text() for text in left.texts[:-1]] == ["5-gram 1.20"]
    assert 1.0 < left.get_ylim()[0] < 1.2


def test_the_vertical_axis_shows_what_comes_after_the_first_tenth(tmp_path):
    start = {"step": 0, "val_loss": 10.0, "bits_per_byte": 14.0}
    metrics = read_metrics(write_run(tmp_path / "new", [start, *falling(100)]))
    figure = draw_runs(["new"], [[metrics]], {}, what=["loss", "perplexity", "bpb"])
    for axes, scale in zip(figure.axes, (float, math.exp, float), strict=True):
        late = max(
            float(y) for line in axes.get_lines() for x, y in line.get_xydata() if x >= 100 and math.isfinite(float(y))
        )
        assert late <= axes.get_ylim()[1] < scale(9.0)
        assert all(line.get_clip_on() for line in axes.get_lines())
    even = read_metrics(write_run(tmp_path / "even", falling(100)[20:]))  # no steep fall at the start
    assert draw_runs(["even"], [[even]], {}).axes[0].get_ylim()[1] > float(even["loss"][0])


def test_the_note_says_what_was_measured_on_what(run, tmp_path):
    assert footnote([run]) == "", "the run has no settings"
    (run / "config.yaml").write_text("train: {eval_batches: 20}")
    assert footnote([run]) == "validation: at most 20 batches of the validation split, no overlap"
    report = {"bits_per_byte": 1.25, "step": 300, "split": "val", "context": 64, "stride": 64}
    (run / "eval.json").write_text(json.dumps(report))
    assert footnote([run]).endswith(
        "no overlap.  Best checkpoint: 1.250 bits per byte (whole validation split, no overlap; step 300)"
    )
    (run / "eval.json").write_text(json.dumps(report | {"step": 100}))
    assert "Best" not in footnote([run]), "the report is not of the best checkpoint"
    other = write_run(tmp_path / "other", falling())
    (other / "config.yaml").write_text("train: {eval_batches: 20}")
    assert footnote([run, other]) == "validation: at most 20 batches of the validation split, no overlap"
    (other / "config.yaml").write_text("{}")
    assert footnote([run, other]) == ""


def test_last_values_of_runs_that_end_alike_do_not_cover_each_other(tmp_path):
    runs = [[read_metrics(write_run(tmp_path / str(n), falling(floor=1.5 + n / 1000)))] for n in range(4)]
    figure = draw_runs(list("abcd"), runs, {})
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
        assert len(boxes) == 4
        for lower, upper in itertools.pairwise(boxes):
            assert upper.y0 - lower.y0 > 0.9 * lower.height


def test_a_run_that_blew_up_is_drawn(tmp_path):
    wild = [{"step": i, "loss": loss, "val_loss": loss} for i, loss in enumerate([3.0, 1e9, math.inf, math.nan])]
    out = plot_runs([write_run(tmp_path / "wild", wild)], tmp_path / "wild.png")
    assert out.stat().st_size > 10_000


def test_png_and_svg_are_whole_and_the_same_every_time(run, tmp_path):
    other = write_run(tmp_path / "runs" / "other", falling(20, floor=2.0))
    png = plot_runs([run, other], tmp_path / "new" / "a.PNG")
    assert png.read_bytes().startswith(b"\x89PNG\r\n") and png.stat().st_size > 20_000
    svg = plot_runs([run, other], tmp_path / "a.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert plot_runs([run, other], tmp_path / "b.svg").read_bytes() == svg


def test_what_cannot_be_drawn_is_said(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        plot_runs([run], tmp_path / "a.jpg")
    with pytest.raises(UserError, match="at least one run"):
        plot_runs([], tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        plot_runs([run], tmp_path / "file" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'minigpt\[plot\]'"):
        plot_runs([run], tmp_path / "a.png")


def test_names_are_as_short_as_they_stay_distinct():
    assert short_names([Path("a/x"), Path("a/y")]) == ["x", "y"]
    assert short_names([Path("a/x"), Path("b/x"), Path("b/y")]) == ["a/x", "b/x", "b/y"]
    assert short_names([Path("a/x"), Path("a/x")]) == ["x", "x"]


def test_the_command_prints_the_path_or_one_object(run, tmp_path, capsys):
    other = write_run(tmp_path / "runs" / "other", falling())
    assert command.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/plots/loss.png\n"
    assert (run / "plots" / "loss.png").is_file()
    assert command.main([str(run), str(other), "--format", "svg", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == f"{run}/plots/compare.svg" and Path(result["path"]).is_file()
    assert [list(each) for each in result["runs"]] == [
        ["run", "step", "loss", "val_loss", "best_val_loss", "best_step"]
    ] * 2
    assert command.main([str(run), "--out", str(tmp_path / "x.svg"), "--x", "tokens"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/x.svg\n"


def test_the_commands_mistakes_are_user_errors(run, tmp_path):
    with pytest.raises(UserError, match="no run to plot"):
        command.main([])
    with pytest.raises(UserError, match="leave --format out"):
        command.main([str(run), "--out", "a.png", "--format", "svg"])
    with pytest.raises(RunError, match="no such run"):
        command.main([str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_drawing_uses_neither_pyplot_nor_torch_and_reading_no_matplotlib(run, tmp_path):
    code = (
        "import sys; from minigpt.explanation import plot_runs, read_metrics; read_metrics(sys.argv[1]);"
        "assert 'matplotlib' not in sys.modules; plot_runs(sys.argv[1:2], sys.argv[2]);"
        "assert 'matplotlib' in sys.modules; assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run), str(tmp_path / "a.png")], check=True)
