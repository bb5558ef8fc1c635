"""Test minigpt plot by reading back what was drawn: panels, seeds as bands, scaling."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_run import json_of

from minigpt.cli import main
from minigpt.cli import plot as command
from minigpt.config import dump_config, load_config
from minigpt.errors import RunError, UserError
from minigpt.explanation import canvas, draw_scaling, measure_scaling, plot_runs
from minigpt.explanation import metrics as arrays
from minigpt.explanation.run_plots import PANELS, draw_runs, group_names
from minigpt.explanation.scaling import frontier
from minigpt.model.cost import flops_per_token, parameter_table
from minigpt.runs.compare import seeds_together

BLUE = "#0072b2"


def write(folder: Path, lines: list[dict], tokenizer: str = "{}", **settings) -> Path:
    """A run directory without weights."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tokenizer.json").write_text(tokenizer)
    shape = {"model.vocab_size": 50, "model.num_heads": 2, "model.embed_dim": 16}
    (folder / "config.yaml").write_text(dump_config(load_config(None, shape | settings)))
    return folder


def lines(shift: float = 0.0, count: int = 90, every: int = 10) -> list[dict]:
    """Lines like those of training: noise in the loss and the gradient, and some evaluations."""
    noise = np.random.default_rng(int(1000 * shift)).normal(0, 0.05, count)
    found = []
    for step in range(1, count + 1):
        loss = 2 + shift + 3 / step
        line = {
            "step": step, "tokens": 64 * step, "seconds": step / 4, "loss": loss + noise[step - 1],
            "lr": 1e-3 * step / count, "grad_norm": 20 / step + shift, "tokens_per_second": 5000.0 + step % 7,
        }  # fmt: skip
        found.append(line | ({"val_loss": loss, "bits_per_byte": loss / 2} if step % every == 0 else {}))
    return found


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Two settings, three seeds each, as a sweep names them."""
    return [
        write(tmp_path / f"sweep/lr={lr},seed={seed}", lines(shift + seed / 50),
              **{"optimizer.learning_rate": lr, "train.seed": seed})
        for shift, lr in ((0.0, 0.01), (1.0, 0.001)) for seed in (1, 2, 3)
    ]  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collect every figure instead of writing it, which takes a second, so that tests can read it."""
    kept: list = []

    def keep(figure, out: Path) -> Path:
        kept.append(figure)
        return out

    for part in ("run_plots", "scaling"):
        monkeypatch.setattr(f"minigpt.explanation.{part}.write_figure", keep)
    return kept


def test_a_perplexity_that_falls_from_thousands_keeps_its_log_axis(tmp_path: Path, figures: list) -> None:
    found = [{"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": 7.4}]
    for step in range(20, 121, 20):
        loss = 1.1 + 80 / step
        found.append({"step": step, "tokens": step, "seconds": float(step), "loss": loss, "val_loss": loss})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_runs([write(tmp_path / "steep", found)], tmp_path / "steep.png", what=["perplexity"])
    assert figures[0].axes[0].get_yscale() == "log" and figures[0].axes[0].get_ylim()[0] > 0


def curves(axes) -> list[np.ndarray]:
    return [line.get_xydata() for line in axes.get_lines()]


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_panel_shows_its_column_with_its_title(tmp_path: Path) -> None:
    metrics = arrays.read_metrics(write(tmp_path / "a", lines()))
    figure = draw_runs(["a"], [[metrics]], {}, what=list(PANELS))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [panel.title for panel in PANELS.values()]
    steps = metrics["step"]
    bpb, rate, norm, speed = (curves(axes) for axes in figure.axes[2:])
    np.testing.assert_array_equal(bpb[0], np.stack([steps, metrics["bits_per_byte"]], 1)[9::10])
    np.testing.assert_array_equal(rate[0], np.stack([steps, metrics["lr"]], 1))
    for (raw, mean), column in ((norm, "grad_norm"), (speed, "tokens_per_second")):
        np.testing.assert_array_equal(raw[:, 1], metrics[column])
        np.testing.assert_array_equal(mean[:, 1], arrays.smooth(metrics[column], 90 // 40))
        assert not np.array_equal(mean[1:-1], raw[1:-1])
    assert [axes.get_yscale() for axes in figure.axes[3:]] == ["linear", "log", "linear"]
    assert figure.axes[3].get_ylim()[0] == figure.axes[5].get_ylim()[0] == 0
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    assert words(figure.axes[2]) == [f"{metrics['bits_per_byte'][-1]:.2f}"] and words(figure.axes[3]) == []


def test_a_loss_of_pairs_is_called_so_and_has_no_perplexity(figures: list, tmp_path: Path) -> None:
    pairs = write(tmp_path / "dpo", lines(), **{"finetune.base": "runs/a", "finetune.dpo_beta": 0.1})
    plot_runs([pairs], tmp_path / "a.svg")
    plot_runs([pairs, write(tmp_path / "plain", lines())], tmp_path / "b.svg")
    titles = [[axes.get_title(loc="left") for axes in figure.axes] for figure in figures]
    assert titles == [["loss, nats per pair"], ["loss, nats per token or pair"]]
    with pytest.raises(UserError, match="has no perplexity; draw --what loss"):
        plot_runs([pairs], tmp_path / "a.svg", what=["perplexity"])


def test_seeds_are_one_curve_in_a_band_of_their_deviation(seeds: list[Path], figures: list, tmp_path: Path) -> None:
    groups = seeds_together(seeds[::-1])
    assert [sorted(group) for group in groups] == [seeds[3:], seeds[:3]], "the groups have the order of the runs"
    plot_runs(groups[::-1], tmp_path / "a.svg", what=["loss", "perplexity", "gradient-norm"])
    for axes, column, scale in zip(
        figures[0].axes, ("val_loss", "val_loss", "grad_norm"), (float, np.exp, float), strict=True
    ):  # fmt: skip
        values = np.array([[line[column] for line in lines(seed / 50) if column in line] for seed in (1, 2, 3)])
        mean, deviation = values.mean(0), values.std(0, ddof=1)
        if column == "grad_norm":
            mean, deviation = (arrays.smooth(each, 90 // 40) for each in (mean, deviation))
        drawn = [line for line in axes.get_lines() if line.get_color() == BLUE][-1]
        scaled = np.vectorize(scale)
        np.testing.assert_allclose(drawn.get_ydata(), scaled(mean))
        [edge] = axes.collections[0].get_paths()
        box = edge.get_extents()
        assert box.ymin == pytest.approx(scaled(mean - deviation).min())
        assert box.ymax == pytest.approx(scaled(mean + deviation).max())
    assert "lr=0.01 (3 seeds)" in words(figures[0].axes[2])[0]
    svg = canvas.write_figure(figures[0], tmp_path / "a.svg").read_text()
    for text in ("loss, nats per token", "lr=0.001 (3 seeds)", "± standard deviation of the seeds", "step"):
        assert f"{text} -->" in svg
    plot_runs(seeds, tmp_path / "b.svg")
    assert not figures[1].axes[0].collections, "each seed has its own line, without a band"


def test_seeds_that_logged_other_steps_meet_where_both_did() -> None:
    one, two = ({"step": np.arange(0.0, 20, gap), "loss": np.arange(0.0, 20, gap) * gap} for gap in (2, 3))
    mean, deviation = arrays.combine([one, two])
    assert mean["step"].tolist() == [0, 6, 12, 18]
    assert mean["loss"].tolist() == [0, 15, 30, 45]
    assert deviation["loss"] == pytest.approx(np.array([0, 6, 12, 18]) / np.sqrt(2))
    evaluated = [np.array([0.0, 7, 13, 21]), np.array([0.0, 6, 12, 18])]  # in runs of some minutes, by the clock
    metrics = []
    for steps, level in zip(evaluated, (2, 4), strict=True):
        lines = np.union1d(np.arange(0.0, steps[-1], 5), steps)
        metrics.append({"step": lines, "val_loss": np.where(np.isin(lines, steps), level - lines / 100, np.nan)})
    mean, deviation = arrays.combine(metrics)
    there = np.isfinite(mean["val_loss"])
    assert mean["step"][there].tolist() == [0, 6, 12, 18]
    assert mean["val_loss"][there] == pytest.approx([3, 2.94, 2.88, 2.82])
    assert deviation["val_loss"][there] == pytest.approx([2**0.5] * 4)
    apart = [{"step": np.array([step]), "loss": np.array([2.0])} for step in (1.0, 2.0)]
    with pytest.raises(UserError, match="no step in common; draw them with --seeds lines"):
        draw_runs(["a"], [apart], {})


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["lr=0.1,seed=1", "lr=0.1,seed=2"], "lr=0.1 (2 seeds)"),
        (["a-11", "a-12"], "a (2 seeds)"),
        (["lr-1-1", "lr-1-2"], "lr-1 (2 seeds)"),
        (["width64a", "width64b"], "width64 (2 seeds)"),
        (["cats", "dogs"], "cats (2 seeds)"),
    ],
)
def test_a_curve_is_named_by_what_its_seeds_share(names: list[str], short: str) -> None:
    assert group_names([[Path("runs") / name for name in names], [Path("runs/x")]]) == [short, "x"]


def test_runs_are_named_next_to_their_curves_and_dashed_from_the_eighth_on(tmp_path: Path, figures: list) -> None:
    runs = [write(tmp_path / f"run-$-{n}", lines(n / 10)) for n in range(9)]
    plot_runs(runs, tmp_path / "a.png")
    left, right = figures[0].axes
    assert [text.split()[-1] for text in words(right)] == [run.name for run in runs]
    assert not any("run" in text for text in words(left))
    styles = {(line.get_color(), line.get_linestyle()) for line in left.get_lines()}
    assert len(styles) == 9
    wild = write(tmp_path / "wild", [*lines()[:-1], {"step": 90, "loss": 50.0, "val_loss": 50.0}])
    plot_runs([runs[0], wild], tmp_path / "a.png")
    left, right = figures[1].axes
    assert words(left) == ["50.00  wild", "2.03"][::-1] and words(right) == ["7.64  run-$-0"], "a diverged run has none"


def test_a_column_that_was_not_logged_is_left_out_and_reported(tmp_path: Path, figures: list, capsys) -> None:
    bare = [{"step": line["step"], "loss": line["loss"]} for line in lines()]
    whole, poor = write(tmp_path / "whole", lines()), write(tmp_path / "poor", bare, **{"model.bias": True})
    out = tmp_path / "a.svg"
    assert command.main([str(whole), str(poor), "--what", "gradient-norm, loss", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and said.err == "not logged, left out of gradient norm: poor\n"
    assert [len(curves(axes)) for axes in figures[0].axes] == [2, 5], "raw and mean; the loss also has validation"
    for runs, who in (([poor], "the run has not"), ([poor, poor], "none of the runs has")):
        with pytest.raises(UserError, match=f"{who} logged throughput; leave it out of --what"):
            plot_runs(runs, out, what=["loss", "throughput"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_runs([poor], out, what="all")
    assert len(figures[-1].axes) == 2, "this run has logged only loss and perplexity"
    with pytest.raises(UserError, match="nothing that can be drawn"):
        plot_runs([write(tmp_path / "none", [{"step": 1}])], out, what="all")


def test_losses_of_two_tokenizers_are_refused_and_bits_per_byte_drawn(tmp_path: Path, figures: list, capsys) -> None:
    runs = [
        str(write(tmp_path / name, lines(), tokenizer=json.dumps(name), **{"model.bias": name == "a"})) for name in "ab"
    ]
    with pytest.raises(UserError, match=r"2 tokenizers.*--what bpb"):
        command.main(runs)
    assert command.main([*runs, "--what", "bpb"]) == 0
    assert capsys.readouterr().out == f"{runs[0]}/plots/bpb.png\n"
    with pytest.warns(UserWarning, match="2 tokenizers"):
        plot_runs(runs, tmp_path / "all.svg", what="all")
    assert len(figures[-1].axes) == 4
    assert main(["runs", "compare", *runs, "--out", str(tmp_path / "compare.svg")]) == 0
    assert [axes.get_title(loc="left") for axes in figures[-1].axes] == [PANELS["bpb"].title]


def test_compare_draws_seeds_as_the_table_has_them(seeds: list[Path], figures: list, capsys) -> None:
    report = json_of(capsys, "runs", "compare", seeds[0].parent)
    assert Path(report["plot"]) == seeds[0].parent / "compare.png"
    shown = [text.split()[0] for text in words(figures[0].axes[0])]
    assert sorted(shown) == sorted(f"{group['mean']['best_val_loss']:.2f}" for group in report["groups"])


def test_floors_stand_in_their_unit_where_all_runs_share_them(tmp_path: Path, figures: list) -> None:
    runs = [write(tmp_path / name, lines()) for name in "ab"]
    report = {"tokens": 100, "bytes": 200, "floors": {"entropy": 0.9}}
    (runs[0] / "eval.json").write_text(json.dumps(report))
    for drawn, nats in ((runs[:1], 0.9 * np.log(2) * 2), (runs, None)):
        plot_runs(drawn, tmp_path / "a.svg", what=["loss", "bpb"])
        floors = [[text for text in words(axes) if "entropy" in text] for axes in figures[-1].axes]
        assert floors == ([[f"entropy of the source {nats:.2f}"], ["entropy of the source 0.90"]] if nats else [[], []])
    (runs[1] / "eval.json").write_text(json.dumps(report))
    plot_runs(runs, tmp_path / "a.svg", what=["bpb"])
    assert "entropy of the source 0.90" in words(figures[-1].axes[0])


@pytest.fixture
def sizes(tmp_path: Path) -> list[Path]:
    """Four sizes whose losses follow a power law of their parameters, and one run that is worse than its size."""
    runs = []
    for width, wasted in ((8, 0.0), (16, 0.0), (32, 0.0), (64, 0.0), (64, 1.0)):
        shape = load_config(None, {"model.vocab_size": 50, "model.num_heads": 2, "model.embed_dim": width}).model
        loss = 7 * parameter_table(shape)["total"] ** -0.1 + wasted
        rows = [{"step": 10, "tokens": 640, "val_loss": loss + 1}, {"step": 20, "tokens": 1280, "val_loss": loss}]
        rows = [row | {"bits_per_byte": row["val_loss"] / 2} for row in [*rows, {**rows[0], "step": 30}]]
        runs.append(write(tmp_path / f"{width}{'-bad' * bool(wasted)}", rows, **{"model.embed_dim": width}))
    return runs


def test_scaling_finds_the_law_that_the_runs_follow(sizes: list[Path], figures: list, tmp_path: Path) -> None:
    scaling = measure_scaling(sizes)
    assert scaling["unit"] == "nats per token" and len(scaling["points"]) == 5
    last, shape = scaling["points"][3], load_config(sizes[3] / "config.yaml").model
    assert (last["run"], last["tokens"], last["deviation"]) == ("64", 1280, None), "counted up to the best evaluation"
    assert last["flops"] == flops_per_token(shape) * 1280
    fit = scaling["fits"]["parameters"]
    assert (fit["factor"], fit["exponent"], fit["runs"]) == (pytest.approx(7), pytest.approx(0.1), 4)
    assert scaling["fits"]["tokens"] is None, "all runs have the same number of tokens, so nothing can be fitted"
    draw_scaling(scaling, tmp_path / "scaling.svg")
    panel = figures[0].axes[0]
    assert panel.get_xscale() == panel.get_yscale() == "log"
    hollow, full, law = panel.get_lines()
    assert hollow.get_xydata().tolist() == [[scaling["points"][4]["parameters"], scaling["points"][4]["loss"]]]
    np.testing.assert_allclose(np.array(full.get_ydata(), float), [point["loss"] for point in scaling["points"][:4]])
    x, y = law.get_data()
    np.testing.assert_allclose(y, 7 * np.array(x) ** -0.1)
    assert panel.get_title(loc="right") == "$L = 7\\,N^{-0.100}$"
    assert sorted(text.split()[-1] for text in words(figures[0].axes[2])) == sorted(run.name for run in sizes)


def test_scaling_counts_the_second_pass_of_masked_inputs(sizes: list[Path]) -> None:
    once, file = measure_scaling(sizes)["points"][3], sizes[3] / "config.yaml"
    file.write_text(dump_config(load_config(file, {"train.masked_inputs": 0.5})))
    twice = measure_scaling(sizes)["points"][3]
    assert (twice["flops"], twice["tokens"]) == (2 * once["flops"], once["tokens"])


def test_scaling_of_preferences_is_per_pair(sizes: list[Path]) -> None:
    for file in (run / "config.yaml" for run in sizes):
        file.write_text(dump_config(load_config(file, {"finetune.dpo_beta": 0.1})))
    assert measure_scaling(sizes)["unit"] == "nats per pair"


def test_scaling_of_seeds_and_of_tokenizers(sizes: list[Path], tmp_path: Path) -> None:
    [point, _] = measure_scaling([sizes[3:], sizes[0]])["points"]
    assert point["deviation"] == pytest.approx(1 / np.sqrt(2)), "sample deviation of two losses that differ by 1"
    (sizes[0] / "tokenizer.json").write_text("another")
    scaling = measure_scaling(sizes)
    assert scaling["unit"] == "bits per byte"
    assert scaling["fits"]["parameters"]["factor"] == pytest.approx(3.5)
    with (
        pytest.raises(UserError, match="two runs or more that have been evaluated"),
        pytest.warns(UserWarning, match="left out: new"),
    ):
        measure_scaling([sizes[0], write(tmp_path / "new", [{"step": 1, "loss": 3.0}])])
    (sizes[1] / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"no config\.yaml"):
        measure_scaling(sizes)


def test_the_frontier_is_what_nothing_smaller_beats() -> None:
    points = [{"x": x, "loss": loss} for x, loss in ((3, 2), (1, 5), (2, 5), (1, 6), (4, 3), (5, 1))]
    assert [(point["x"], point["loss"]) for point in frontier(points, "x")] == [(1, 5), (3, 2), (5, 1)]


def test_the_command_takes_sweeps_and_names_the_picture(seeds: list[Path], figures: list, capsys) -> None:
    sweep = str(seeds[0].parent)
    assert command.main([sweep, "--what", "scaling", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["path", "runs", "scaling"] and report["path"] == f"{sweep}/plots/scaling.png"
    assert len(report["runs"]) == 6 and len(report["scaling"]["points"]) == 2
    assert list(report["scaling"]["points"][0]) == ["run", "parameters", "tokens", "flops", "loss", "deviation"]
    assert command.main([sweep, "--what", "scaling", "--json", "--seeds", "lines"]) == 0
    assert len(json.loads(capsys.readouterr().out)["scaling"]["points"]) == 6
    assert command.main([sweep, "--what", "all", "--format", "svg", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == f"{sweep}/plots/all.svg" and report["scaling"] is None
    assert len(figures[-1].axes) == 6
    (seeds[5] / "metrics.jsonl").unlink()
    (seeds[4] / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    assert command.main([sweep, "--what", "scaling", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == f"no metrics yet, left out: {seeds[5].name}\nnot evaluated yet, left out: {seeds[4].name}\n"
    assert [point["deviation"] is None for point in json.loads(said.out)["scaling"]["points"]] == [True, False]
    with pytest.raises(RunError, match="no metrics in"):
        command.main([sweep, str(seeds[5])])


def test_wrong_words_are_reported(seeds: list[Path]) -> None:
    run = str(seeds[0])
    for flags, message in (
        (["--what", "los"], "no such picture: los; did you mean loss"),
        (["--what", "loss,scaling"], "pictures by themselves"),
        (["--what", "scaling", "--x", "tokens"], "axes of its own"),
        (["--what", "scaling"], "two runs or more"),
    ):
        with pytest.raises(UserError, match=message):
            command.main([run, *flags])


def test_labels_do_not_overlap_and_stay_inside() -> None:
    assert canvas.spread_out([0.2, 0.21, 1.0], 0.1) == pytest.approx([0.2, 0.3, 1.0])
    assert canvas.spread_out([0.98, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert canvas.spread_out([0.5] * 3, 0.6) == pytest.approx([0.0, 0.6, 1.2])


def test_one_run_alone_need_not_be_a_list(tmp_path: Path) -> None:
    run = write(tmp_path / "one", lines())
    for given in (run, str(run)):
        assert plot_runs(given, tmp_path / "one.png").is_file()
