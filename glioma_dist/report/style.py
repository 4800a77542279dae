"""One look for all plots: colours, axes, captions, and PNG files that depend on the numbers only."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glioma_dist.files import remove_quietly, write_atomically

GREY = "#767676"
BLUE, ORANGE, GREEN, VIOLET = "#1f6fb5", "#c8501e", "#2e8b57", "#7a4d9f"
LIGHT_BLUE, DARK_BLUE = "#5aa9e6", "#0b2f5c"
DPI = 120


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG. Without the library's version and date, the same numbers give the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG, its words as text. The same numbers give the same bytes."""
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "glioma-dist"}):
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()


def write_plots(folder: Path, figures: Mapping[str, Figure | None]) -> None:
    """Write each figure under its name into `folder`. Where there is nothing to draw (None), remove an older plot."""
    for name, figure in figures.items():
        if figure is None:
            remove_quietly(folder / name)
        else:
            write_atomically(folder / name, png_bytes(figure))


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame on the right and at the top."""
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def entitle(figure: Figure, title: str, caption: str) -> None:
    """The title at the top left, and below the plot what its marks mean."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=GREY)


def drawable(text: str) -> str:
    """A text from elsewhere as matplotlib draws it: $ would begin a formula, and letters that its font lacks warn."""
    return text.encode("latin-1", "replace").decode("latin-1").replace("$", r"\$")
