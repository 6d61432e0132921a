"""What a figure lacks: title, labels of axes, legend, few enough lines, label of colour bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 7
"""Largest number of named lines of one panel; more become several panels."""


def below_standard(figure: Figure) -> list[str]:
    """One sentence for each thing that the figure lacks; empty if it lacks nothing.

    Args:
        figure: figure with all that it shows. Axes without data, or switched off, need no labels,
            and neither do images without ticks.
    """
    faults = [] if figure.get_suptitle() else ["the figure has no title"]
    images = [image for axes in figure.axes for image in axes.images]
    bars = [image.colorbar for image in images if image.colorbar is not None]
    faults += ["a colour bar has no label" for bar in bars if not bar.ax.get_ylabel()]
    of_bars = [bar.ax for bar in bars]
    drawn = [axes for axes in figure.axes if axes.has_data() and axes not in of_bars]
    plots = [axes for axes in drawn if axes.axison and not _is_picture(axes)]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    explained = {text.get_text() for one in legends if one is not None for text in one.get_texts()}
    for axes in plots:
        faults += _faults_of_axes(axes, explained, alone=len(drawn) == 1)
    return faults


def _faults_of_axes(axes: Axes, explained: set[str], *, alone: bool) -> list[str]:
    name = repr(axes.get_title())
    faults = [] if alone or axes.get_title() else ["a panel has no title"]
    alike = axes.get_shared_x_axes().get_siblings(axes)
    if not any(other.get_xlabel() for other in alike):
        faults.append(f"panel {name} has no label of its horizontal axis")
    alike = axes.get_shared_y_axes().get_siblings(axes)
    if not any(other.get_ylabel() for other in alike):
        faults.append(f"panel {name} has no label of its vertical axis")
    _, labels = axes.get_legend_handles_labels()
    missing = [label for label in labels if label not in explained]
    if len(labels) > 1 and missing:
        faults.append(f"panel {name} has no legend with {missing[0]!r}")
    if len(labels) > MOST_LINES:
        faults.append(
            f"panel {name} has {len(labels)} named lines: at most {MOST_LINES} can be told apart, "
            "so divide them between panels"
        )
    return faults


def _is_picture(axes: Axes) -> bool:
    return bool(axes.images) and not len(axes.get_xticks())
