"""The report as a picture: one panel for each thing that was measured, one bar for each subject."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from whisper_max_plugin import environment
from whisper_max_plugin.bench.errors import BenchError
from whisper_max_plugin.bench.results import Report, Times

SUFFIXES = (".png", ".svg", ".pdf")
COLUMNS = 2
PANEL_INCHES = (5.5, 1.9)


def check(path: Path) -> None:
    """Refuse what cannot be drawn.

    Raises
    ------
    BenchError
        if matplotlib is not installed, or the name does not end in one of `SUFFIXES`
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BenchError(f"--plot {path}: the name should end in one of {', '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(f"--plot needs matplotlib: {environment.install('matplotlib')}")


def draw(report: Report, path: Path) -> None:
    """Write the picture: medians, with lines from the least to the most.

    Raises
    ------
    BenchError
        if the file cannot be written
    """
    from matplotlib.figure import Figure

    titles = {subject.name: subject.title for subject in report.subjects}
    panels: dict[str, dict[str, Times]] = {}
    for whole in report.transcriptions:
        panels.setdefault("transcribe()", {})[titles[whole.subject]] = whole.times
    for stage in report.stages:
        panels.setdefault(stage.title, {})[titles[stage.subject]] = stage.times

    n_rows = -(-len(panels) // COLUMNS)
    width, height = PANEL_INCHES
    figure: Any = Figure(figsize=(COLUMNS * width, n_rows * height + 0.6), layout="constrained")
    figure.suptitle(f"{report.command}\n{report.machine['cpu']}", fontsize=8, family="monospace", wrap=True)
    axes = figure.subplots(n_rows, COLUMNS, squeeze=False).flatten()
    colors = {title: f"C{number}" for number, title in enumerate(titles.values())}
    for axis, (title, bars) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, bars, colors)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}") from error


def _draw_panel(axis: Any, title: str, bars: dict[str, Times], colors: dict[str, str]) -> None:
    medians = [1e3 * times.median for times in bars.values()]
    below = [1e3 * (times.median - times.min) for times in bars.values()]
    above = [1e3 * (times.max - times.median) for times in bars.values()]
    places = range(len(bars))
    axis.barh(places, medians, xerr=[below, above], color=[colors[subject] for subject in bars], ecolor="0.3")
    for place, median in zip(places, medians, strict=True):
        axis.text(
            0,
            place,
            f" {median:.0f}" if median >= 100 else f" {median:.3g}",
            va="center",
            fontsize=7,
            color="white",
            weight="bold",
        )
    axis.set_yticks(places, list(bars), fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(f"{title}, ms", fontsize=8, loc="left")
