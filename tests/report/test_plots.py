"""What the plots draw is what they were given, at a size and in letters that print."""

import csv
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meqsum_lightning.metrics.significance import pairwise_outcomes
from meqsum_lightning.report import plots
from meqsum_lightning.report.page import Plot, Section, render_page

MM = 25.4
ODD_NAMES = [
    "адаптер",
    "日本語の名前",
    "r=$16_{x}$ 50%",
    "adapter.target_modules=[q,v,k,o,wi_0,wi_1,wo],adapter.r=16,adapter.alpha=32,optim.lr=0.0003",
    "two\nlines\ttab",
    "<b>&\ud800\x00",
    "",
]
SIXTY = [f"adapter.r={r},adapter.alpha={a},optim.lr=0.001" for r in range(6) for a in range(10)]


def by_gid(figure: Any, gid: str) -> Any:
    found = figure.findobj(lambda artist: artist.get_gid() == gid)
    assert len(found) == 1, (gid, found)
    return found[0]


def texts(axes: Any) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


def check_print(figure: Any, width: float = 85.0) -> None:
    """One column wide, letters of 7 pt, nothing over the edge."""
    assert figure.get_size_inches()[0] * MM == pytest.approx(width, abs=0.01)
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() >= 7.0, text
    box = figure.get_tightbbox()
    size = figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01
    assert box.x1 <= size[0] + 0.01 and box.y1 <= size[1] + 0.01


def test_names_of_a_small_front_are_all_there():
    sizes, scores = [1e4, 1e5, 1e6, 2e6], [0.2, 0.25, 0.3, 0.22]
    names = ["qv r=4", "qv r=8", "all r=16", "all r=32"]
    figure = plots.score_against_parameters(names, sizes, scores, score="s")
    assert {text.get_text() for text in figure.axes[0].texts} == set(names)


def outcomes(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return pairwise_outcomes({str(at): rng.integers(0, 6, 50) / 5 for at in range(count)})


# ---------------------------------------------------------------------------------- heat maps


def test_heat_map_shows_every_score_in_its_cell():
    panels = {
        "qv": {(16, 32): 0.3, (4, 8): 0.1234, (4, 32): math.nan},
        "all": {(4, 8): 0.5, (16, 8): 0.41, (16, 32): None},
    }
    figure = plots.heat_maps(panels, rows="rank r", columns="alpha", score="ROUGE-L")
    check_print(figure)
    first, second, bar = figure.axes
    assert texts(first) == {(0.5, 0.5): "0.123", (1.5, 1.5): "0.300"}
    assert texts(second) == {(0.5, 0.5): "0.500", (0.5, 1.5): "0.410"}
    assert [t.get_text() for t in first.get_yticklabels()] == ["4", "16"]
    assert [t.get_text() for t in first.get_xticklabels()] == ["8", "32"]
    # One scale for both panels, and missing cells are hatched.
    assert {panel.collections[0].get_clim() for panel in (first, second)} == {(0.1234, 0.5)}
    assert sorted(patch.get_xy() for patch in first.patches) == [(0, 1), (1, 0)]
    assert sorted(patch.get_xy() for patch in second.patches) == [(1, 0), (1, 1)]
    assert all(patch.get_hatch() for patch in (*first.patches, *second.patches))
    assert bar.get_xlabel() == "ROUGE-L"
    assert first.collections[0].get_array()[0, 0] == 0.1234


def test_numbers_in_cells_stand_out():
    values = {(1, column): column / 20 for column in range(9)}
    figure = plots.heat_maps({"": values}, rows="r", columns="c", score="s")
    axes = figure.axes[0]
    mesh = axes.collections[0]
    for at, text in enumerate(axes.texts):
        assert contrast(mesh.cmap(mesh.norm(at / 20)), text.get_color()) >= 4.5


def contrast(first: Any, second: Any) -> float:
    from matplotlib.colors import to_rgb

    levels = []
    for colour in (first, second):
        parts = np.array(to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(levels) / min(levels)


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {(4, 8): 0.3},
        {(4, 8): None},
        {(r, a): 0.3 for r in (1, 2) for a in (1, 2)},
        {(name, 1): 0.1 for name in ODD_NAMES},
        {(r, f"{name}-{a}"): r / 6 for r in range(6) for a, name in enumerate(SIXTY[:30])},
    ],
)
def test_heat_maps_cope(cells: dict):
    figure = plots.heat_maps({"one": cells}, rows="r", columns="c", score="s")
    check_print(figure, max(85.0, figure.get_size_inches()[0] * MM))


# ----------------------------------------------------------------------- score against parameters


def test_pareto_front_is_what_nothing_beats():
    sizes = [100, 10, 10, 1000, 50, None, 5, 100]
    scores = [0.4, 0.2, 0.3, 0.4, 0.1, 0.9, math.nan, 0.4]
    assert plots.pareto_front(sizes, scores) == [2, 0]
    rng = np.random.default_rng(0)
    sizes, scores = rng.integers(1, 20, 40).tolist(), rng.random(40).round(1).tolist()
    front = plots.pareto_front(sizes, scores)
    for at in range(40):
        better = any(
            sizes[o] <= sizes[at]
            and scores[o] >= scores[at]
            and (sizes[o], scores[o]) != (sizes[at], scores[at])
            for o in range(40)
        )
        twin = any((sizes[o], scores[o]) == (sizes[at], scores[at]) for o in front)
        assert twin is not better


def test_points_stand_where_they_belong():
    figure = plots.score_against_parameters(
        ["base", "small", "large", "lost"],
        [0, 1e5, 1e6, None],
        [0.2, 0.3, 0.25, 0.9],
        [(0.1, 0.3), (0.25, 0.35), None, None],
        score="test ROUGE-L",
        groups=["none", "qv", "all", "all"],
    )
    check_print(figure)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "test ROUGE-L"
    base, small, large = (by_gid(figure, f"points-{place}") for place in range(3))
    zero = base.get_xdata()[0]
    assert 0 < zero < 1e5 and list(base.get_ydata()) == [0.2]
    assert (list(small.get_xdata()), list(small.get_ydata())) == ([1e5], [0.3])
    assert (list(large.get_xdata()), list(large.get_ydata())) == ([1e6], [0.25])
    assert len({line.get_marker() for line in (base, small, large)}) == 3
    assert len({line.get_color() for line in (base, small, large)}) == 3
    assert list(by_gid(figure, "interval-1").get_ydata()) == [0.25, 0.35]
    front = by_gid(figure, "front")
    assert list(front.get_xdata())[:2] == [zero, 1e5]
    assert list(front.get_ydata()) == [0.2, 0.3, 0.3]
    assert axes.get_xticklabels()[0].get_text() == "0" and axes.get_xticks()[0] == zero
    assert {t.get_text() for t in axes.texts} == {"base", "small", "large"}


@pytest.mark.parametrize("seed", range(3))
def test_names_cover_neither_each_other_nor_points(seed: int):
    rng = np.random.default_rng(seed)
    sizes, scores = 10 ** rng.uniform(4, 8, 60), rng.normal(0.3, 0.02, 60)
    figure = plots.score_against_parameters(SIXTY, sizes, scores, score="ROUGE-L")
    check_print(figure)
    axes = figure.axes[0]
    names = [text for text in axes.texts if text.get_text()]
    assert names
    boxes = [text.get_window_extent() for text in names]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for x, y in axes.transData.transform(np.column_stack([sizes, scores])):
        assert not any(box.contains(x, y) for box in boxes)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    best = SIXTY[int(np.argmax(scores))].removeprefix("adapter.").split(",")[0]
    assert any(best in text.get_text() for text in names)


@pytest.mark.parametrize(
    ("sizes", "scores"),
    [([], []), ([None], [None]), ([0], [0.3]), ([5e6], [0.3]), ([7] * 7, [0.3] * 7)],
)
def test_score_against_parameters_copes(sizes: list, scores: list):
    names = ODD_NAMES[: len(sizes)]
    figure = plots.score_against_parameters(names, sizes, scores, score="s", groups=names)
    check_print(figure)


# ------------------------------------------------------------------------------- learning curves


def rows_of(offset: float = 0.0) -> list[dict[str, Any]]:
    """As csv.DictReader reads them: two epochs of four steps."""
    rows: list[dict[str, Any]] = []
    for step in range(8):
        row = {"epoch": str(step // 4), "step": str(step), "train/loss": str(4.0 - step / 4)}
        row["val/rougeL"] = str(0.1 * (step // 4 + 1) + offset) if step % 4 == 3 else ""
        rows.append(row)
    return rows


def test_curves_go_on_within_an_epoch():
    rows = rows_of()
    assert plots.curve(rows, "val/rougeL", "epochs") == [(1.0, 0.1), (2.0, 0.2)]
    assert plots.curve(rows, "train/loss", "epochs")[:2] == [(0.25, 4.0), (0.5, 3.75)]
    assert plots.curve(rows, "val/rougeL", "steps") == [(4.0, 0.1), (8.0, 0.2)]
    assert plots.curve(rows, "absent", "steps") == []
    # Without a validation, and where the last epoch is cut short, the steps are those run.
    assert plots.curve(rows[:3], "train/loss", "epochs")[-1] == (1.0, 3.5)
    assert plots.curve([], "train/loss", "epochs") == []


def test_learning_curves_draw_what_was_logged(finished_run: Path):
    with (finished_run / "logs/metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = plots.learning_curves({"real": rows}, label="validation ROUGE-L")
    check_print(figure)
    upper, lower = figure.axes
    (loss,), (score,) = upper.lines, lower.lines
    assert list(loss.get_ydata()) == [float(r["train/loss"]) for r in rows if r["train/loss"]]
    assert list(score.get_ydata()) == [float(r["val/rougeL"]) for r in rows if r["val/rougeL"]]
    assert list(score.get_xdata()) == [1.0, 2.0]
    assert lower.get_xlabel() == "epochs" and lower.get_ylabel() == "validation ROUGE-L"


def test_the_best_eight_of_many_runs_stand_out():
    runs = {name: rows_of(at / 100) for at, name in enumerate(SIXTY)}
    figure = plots.learning_curves(runs)
    check_print(figure)
    lower = figure.axes[1]
    coloured = [line for line in lower.lines if line.get_color() != "#BBBBBB"]
    assert [line.get_gid() for line in coloured] == [f"run:{name}" for name in SIXTY[:-9:-1]]
    assert len({(line.get_color(), line.get_marker()) for line in coloured}) == 8
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in coloured}) == 8
    assert len(lower.lines) == 60
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(labels)) == 9 and labels[-1] == "52 others"


@pytest.mark.parametrize(
    "runs",
    [
        {},
        {"empty": []},
        {"no values": [{"epoch": "", "step": "x", "train/loss": "nan"}]},
        {"flat": [{"epoch": 0, "step": s, "train/loss": 1.0, "val/rougeL": 0.0} for s in (0, 1)]},
        {"single": [{"epoch": 0, "step": 0, "train/loss": 1.0}]},
        {name: rows_of() for name in ODD_NAMES},
    ],
)
def test_learning_curves_cope(runs: dict):
    check_print(plots.learning_curves(runs))


# ------------------------------------------------------------------------------ scores by groups


def panel(systems: dict[str, list], groups: tuple[str, ...] = ("what", "how")) -> dict:
    counts = [90, 10, 1000][: len(groups)]
    return {"title": "question word", "groups": groups, "counts": counts, "systems": systems}


def test_groups_show_scores_intervals_and_counts():
    systems = {
        "a": [(0.3, 0.2, 0.4), None],
        "b": [(0.1, 0.05, 0.2), (0.5, None, None)],
    }
    figure = plots.scores_by_group([panel(systems)], score="ROUGE-L")
    check_print(figure)
    axes = figure.axes[0]
    first, second = by_gid(figure, "scores-0"), by_gid(figure, "scores-1")
    np.testing.assert_array_equal(first.get_ydata(), [0.3, math.nan])
    np.testing.assert_array_equal(second.get_ydata(), [0.1, 0.5])
    # Side by side around their group.
    assert first.get_xdata()[0] < 0 < second.get_xdata()[0] < 0.5
    segment = by_gid(figure, "intervals-1").get_segments()[0]
    assert segment[:, 1].tolist() == [0.05, 0.2]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["what\nn=90", "how\n10"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
    assert first.get_marker() != second.get_marker()


def test_only_five_of_many_systems_are_coloured():
    systems = {name: [(at / 60, 0.0, 1.0)] * 2 for at, name in enumerate(SIXTY)}
    figure = plots.scores_by_group([panel(systems), panel(systems)], score="s")
    check_print(figure)
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_gid()]
    assert len(colours) == 60 and colours.count("#BBBBBB") == 55
    assert figure.legends[0].get_texts()[-1].get_text() == "55 others"


@pytest.mark.parametrize(
    "panels",
    [
        [],
        [panel({}, ())],
        [panel({"a": [None, None]})],
        [panel({"a": [(0.3, 0.3, 0.3)] * 2})],
        [panel({name: [(0.3, 0.2, 0.4)] * 3 for name in ODD_NAMES}, tuple(ODD_NAMES[:3]))],
    ],
)
def test_groups_cope(panels: list):
    check_print(plots.scores_by_group(panels, score="s"))


# -------------------------------------------------------------------------------- wins and losses


def test_wins_ties_and_losses_stand_in_their_cells():
    systems = {"a": np.array([1.0, 0.5, 0.5, 0.0]), "b": np.array([0.0, 0.5, 0.1, 0.2])}
    figure = plots.win_tie_loss(["a", "b"], pairwise_outcomes(systems), score="ROUGE-L")
    check_print(figure)
    axes = figure.axes[0]
    assert texts(axes) == {(1.5, 0.5): "+2\n=1\n\u22121", (0.5, 1.5): "+1\n=1\n\u22122"}
    net = axes.collections[0].get_array()
    assert net[0, 1] == 0.25 and net[1, 0] == -0.25 and net.mask.diagonal().all()
    assert axes.collections[0].get_clim() == (-1, 1)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a  1", "b  2"]
    assert "ROUGE-L" in figure.axes[1].get_xlabel()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_outcomes_cope(count: int):
    names = ODD_NAMES[:count]
    figure = plots.win_tie_loss(names, outcomes(count), score="s")
    check_print(figure, max(85.0, figure.get_size_inches()[0] * MM))


def test_outcomes_of_sixty_systems_fit_without_numbers():
    figure = plots.win_tie_loss(SIXTY, outcomes(60), score="s")
    assert not figure.axes[0].texts and figure.get_size_inches()[0] * MM < 210
    labels = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    # Letters as tall as capital and descender; the lines keep apart.
    assert all(a.y0 >= b.y1 - 3 for a, b in itertools.pairwise(labels))


def test_outcomes_of_another_number_of_systems_are_refused():
    with pytest.raises(ValueError, match="expected outcomes of 2 systems"):
        plots.win_tie_loss(["a", "b"], np.zeros((3, 2, 3)), score="s")


# ------------------------------------------------------------------------------------ forest plot


def test_forest_shows_effects_bands_and_significance():
    figure = plots.forest(
        ["a", "b", "c"],
        [0.02, -0.01, None],
        [(0.01, 0.03), (-0.02, 0.001), None],
        [True, False, None],
        baseline="base",
        score="ROUGE-L",
        detectable=[0.015, 0.02, math.inf],
    )
    check_print(figure)
    axes = figure.axes[0]
    first, second = by_gid(figure, "effect-0"), by_gid(figure, "effect-1")
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0.02], [0])
    assert list(second.get_xdata()) == [-0.01]
    # Shape and filling tell significance, not colour alone.
    assert first.get_marker() == "D" and second.get_marker() == "o"
    assert first.get_markerfacecolor() != second.get_markerfacecolor()
    assert list(by_gid(figure, "interval-1").get_xdata()) == [-0.02, 0.001]
    bands = [(p.get_x(), p.get_width(), p.get_y(), p.get_height()) for p in axes.patches]
    assert bands == [(-0.015, 0.03, -0.5, 1), (-0.02, 0.04, 0.5, 1)]
    right = axes.child_axes[0]
    assert [t.get_text() for t in right.get_yticklabels()] == ["+0.020", "\u22120.010", "–"]
    assert axes.get_xlabel() == "difference in ROUGE-L to base"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize(
    ("names", "effects"),
    [([], []), (["a"], [None]), (ODD_NAMES, [0.0] * 7), (SIXTY, [0.01] * 60)],
)
def test_forest_copes(names: list, effects: list):
    nothing: list[Any] = [None] * len(names)
    figure = plots.forest(
        names, effects, nothing, nothing, baseline=SIXTY[0], score="s", detectable=0.1
    )
    check_print(figure)


# ---------------------------------------------------------------------------------------- saving


def some_figure() -> Any:
    return plots.heat_maps({"qv": {(1, 2): 0.1, (2, 2): None}}, rows="r", columns="c", score="s")


def test_saved_files_are_the_same_every_time(tmp_path: Path):
    first = plots.save(some_figure(), tmp_path / "one", "heat")
    second = plots.save(some_figure(), tmp_path / "two", "heat")
    assert [path.name for path in first] == ["heat.png", "heat.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["heat.png", "heat.svg"]
    with Image.open(first[0]) as image:
        assert image.width == round(85 / MM * 200) and round(image.info["dpi"][0]) == 200
    text = first[1].read_text("utf-8")
    assert text == plots.svg_text(some_figure())
    assert "<dc:date>" not in text and "Matplotlib" not in text
    assert re.search(r'width="240\.\d+pt"', text)


def test_settings_of_the_user_change_nothing():
    import matplotlib

    expected = plots.svg_text(some_figure())
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.grid": True}):
        assert plots.svg_text(some_figure()) == expected
    before = dict(matplotlib.rcParams)
    some_figure()
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_loads_late_and_without_pyplot():
    code = (
        "import sys; from meqsum_lightning.report import page, plots;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules;"
        "plots.svg_text(plots.forest(['a'], [1], [None], [True], baseline='b', score='s'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_figures_stand_on_a_page():
    figures = [some_figure(), plots.win_tie_loss(["a", "b"], outcomes(2), score="s")]
    page = render_page("x", [Section("s", [Plot(plots.svg_text(f), "caption") for f in figures])])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for link in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert link in ids
    assert page.count("<svg") == 2 and "http://" not in page.replace("http://www.w3.org/", "")
