"""Draw the figure of the first page: `python book/_static/what_this_book_is_about.py`.

A sketch: the digits are data, the arrows and bars are not.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from sklearn.datasets import load_digits

BLUE, ORANGE, GREY, INK = "#0072B2", "#C04A00", "#8A8F98", "#1B2430"  # Okabe-Ito blue and a darker vermilion
SHOWN = [3, 13, 8, 5, 23, 9]  # rows of the digits: 3, 3, 8, 5, 3, 9
EFFECT = [1.0, 0.55, -0.9, -0.35, 0.12, 0.05]  # drawn, not computed: positive = helpful
QUERY, MISLABELLED = 45, 2


def arrow(ax, start, end, effect):
    """One influence arrow: colour and dash say the sign, width the size."""
    small = abs(effect) < 0.2
    colour = GREY if small else BLUE if effect > 0 else ORANGE
    width = 1.0 if small else 1.2 + 3.2 * abs(effect)
    dash = "--" if effect <= -0.2 else "-"
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, linestyle=dash, shrinkB=2,
                                 color=colour, lw=width))


def digit(ax, image, at, zoom, edge=INK):
    """A digit as a small framed picture."""
    box = OffsetImage(image, cmap="Greys", zoom=zoom, interpolation="nearest")
    ax.add_artist(AnnotationBbox(box, at, pad=0.12, bboxprops=dict(edgecolor=edge, lw=1.1, facecolor="white")))


def draw():
    """The whole sketch on one axis, in units of a tenth of an inch."""
    digits = load_digits()
    fig, ax = plt.subplots(figsize=(6.2, 4.1))
    ax.set(xlim=(0, 62), ylim=(0, 41))
    ax.axis("off")
    fig.subplots_adjust(0, 0, 1, 1)
    title = dict(ha="center", va="center", fontsize=12, color=INK, fontweight="bold")
    ax.text(9.5, 38.3, "training examples", **title)
    for k, (row, effect) in enumerate(zip(SHOWN, EFFECT, strict=True)):
        y = 33.6 - 5.4 * k
        digit(ax, digits.images[row], (6.4, y), 3.7)
        label = 3 if k == MISLABELLED else digits.target[row]
        ax.text(10.6, y, f'"{label}"', va="center", fontsize=12, color=INK)
        arrow(ax, (14.4, y), (23.9, 20.5 + 0.16 * (y - 19.3)), effect)
    y = 33.6
    for sign in (-1, 1):
        ax.plot([3.4, 9.4], [y - sign * 2.7, y + sign * 2.7], color="#B00020", lw=2.4, zorder=9)

    box = "round,pad=0,rounding_size=1.6"
    ax.add_patch(FancyBboxPatch((24.6, 15.6), 10.2, 9.8, boxstyle=box, fc="#EEF3F8", ec=INK, lw=1.3))
    ax.text(29.7, 22.0, "model", **title)
    ax.text(29.7, 18.6, r"$\hat\theta$", ha="center", va="center", fontsize=17, color=INK)
    ax.add_patch(FancyArrowPatch((35.3, 20.5), (40.2, 20.5), arrowstyle="-|>", mutation_scale=14, color=INK, lw=1.6))

    ax.text(51.0, 38.3, "query loss", **title)
    digit(ax, digits.images[QUERY], (51.0, 32.4), 4.6)
    ax.text(51.0, 27.2, "is this a 3?", ha="center", va="center", fontsize=11, color=INK)
    for x, height, name, colour in ((43.6, 8.0, "with", "#C9D6E4"), (51.6, 13.4, "without", "#7FB2D9")):
        ax.add_patch(Rectangle((x, 9.0), 5.6, height, fc=colour, ec=INK, lw=1.1))
        ax.text(x + 2.8, 7.3, name, ha="center", va="center", fontsize=11, color=INK)
    ax.plot([42.0, 61.0], [9.0, 9.0], color=INK, lw=1.1)
    ax.plot([49.4, 59.4], [17.0, 17.0], color=INK, lw=0.9, ls=":")
    ax.add_patch(FancyArrowPatch((59.0, 17.0), (59.0, 22.6), arrowstyle="-|>", mutation_scale=12, color=INK, lw=1.5))
    ax.text(60.4, 19.6, r"$\Delta$", ha="center", va="center", fontsize=13, color=INK)

    ax.text(51.0, 4.9, "the crossed-out example", ha="center", va="center", fontsize=11, color=INK)
    legend = [("helpful", BLUE, "-", 3), ("harmful", ORANGE, "--", 3), ("hardly matters", GREY, "-", 1)]
    for x, (word, colour, dash, width) in zip((3.4, 20.4, 37.4), legend, strict=True):
        ax.plot([x, x + 3.6], [1.6, 1.6], color=colour, ls=dash, lw=width)
        ax.text(x + 4.5, 1.6, word, va="center", fontsize=11, color=INK)
    return fig


if __name__ == "__main__":
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "clif-book", "svg.fonttype": "path"})
    target = Path(__file__).with_suffix(".svg")
    draw().savefig(target, facecolor="white", metadata={"Date": None, "Creator": None})
