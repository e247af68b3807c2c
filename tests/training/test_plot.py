"""The plot of a run: every line is drawn where its values are, and what cannot be drawn does no harm."""

import json

import numpy as np
import pytest
from PIL import Image

from t2l.io.plot import COLOURS, HEIGHT, LEFT, RIGHT, WIDTH, _log_ticks, _ticks, write_plot


def drawn(rows, folder, tail=""):
    """The plot of some log lines, (H, W, 3)."""
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    write_plot(folder / "stats.jsonl", folder / "plot.png")
    return np.array(Image.open(folder / "plot.png"))


def heights(picture, colour):
    """Of every column between the axes, the mean row of a colour's pixels; NaN where there are none."""
    is_there = (picture[:HEIGHT, LEFT + 1 : WIDTH - RIGHT - 4] == colour).all(axis=2)
    rows = np.arange(HEIGHT)[:, None]
    with np.errstate(invalid="ignore"):
        return (is_there * rows).sum(axis=0) / is_there.sum(axis=0)


def test_a_panel_for_the_loss_and_one_for_the_learning_rate(tmp_path):
    rows = [
        {"step": step, "loss": 2 - step / 100, "lr": 1e-4, "skipped": 0, "data_wait": 0.1} for step in range(1, 101)
    ]
    assert drawn(rows, tmp_path).shape == (2 * HEIGHT, WIDTH, 3)


def test_a_line_falls_where_its_values_fall_and_logarithms_make_a_straight_one_of_a_decay(tmp_path):
    rows = [{"step": step, "loss": 10 * 0.9**step} for step in range(50)]
    found = heights(drawn(rows, tmp_path), COLOURS[0])
    found = found[~np.isnan(found)]
    assert len(found) > 800 and found[-1] - found[0] > HEIGHT / 2
    assert np.abs(np.diff(found, n=1) - np.diff(found).mean()).mean() < 1.0
    middle, straight = found[len(found) // 2], (found[0] + found[-1]) / 2
    assert abs(middle - straight) < 4


def test_a_noisy_line_is_drawn_as_its_running_mean(tmp_path):
    generator = np.random.default_rng(0)
    rows = [{"step": step, "loss": 1 + 0.2 * generator.standard_normal()} for step in range(1, 1001)]
    found = heights(drawn(rows, tmp_path), COLOURS[0])
    assert np.nanstd(found) < HEIGHT / 40


def test_validation_stands_beside_the_loss_and_terms_that_change_sign_apart_from_the_others(tmp_path):
    rows = [{"step": s, "total": 2.0, "kl": 1e4, "adversarial": s - 3.0, "lr": 1e-4} for s in range(1, 7)]
    rows += [{"step": 3, "validation_loss": 1.5}, {"step": 6, "validation_loss": 1.4}]
    picture = drawn(rows, tmp_path)
    assert picture.shape[0] == 4 * HEIGHT
    first, second = (heights(picture, colour) for colour in COLOURS[:2])
    assert np.nanmean(first) < np.nanmean(second)  # the larger one is higher up


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_one_point_or_a_constant_is_a_plot(value, tmp_path):
    for count in (1, 3, 200):
        assert drawn([{"step": step + 1, "loss": value} for step in range(count)], tmp_path).shape[0] == HEIGHT


def test_what_a_kill_cut_off_and_what_is_no_number_is_left_out(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 0.5, "note": "x"}]
    assert drawn(rows, tmp_path, tail='{"step": 4, "lo').shape[0] == HEIGHT


def test_where_nothing_is_logged_nothing_is_drawn(tmp_path):
    write_plot(tmp_path / "stats.jsonl", tmp_path / "plot.png")
    (tmp_path / "stats.jsonl").write_text("")
    write_plot(tmp_path / "stats.jsonl", tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    rows = [{"step": step, "loss": 1 / step, "lr": 1e-4} for step in range(1, 80)]
    drawn(rows, tmp_path)
    first = (tmp_path / "plot.png").read_bytes()
    drawn(rows, tmp_path)
    assert (tmp_path / "plot.png").read_bytes() == first


def test_ticks_are_round_and_lie_on_the_axis():
    assert _ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert _log_ticks(-1.1, 1.1) == [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
    assert len(_log_ticks(-30.0, 4.0)) <= 14
