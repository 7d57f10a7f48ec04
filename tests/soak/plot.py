"""A plot of a soak: memory, descriptors, and what was done, over time, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT, LEFT = 720, 130, 90
_ROWS = (("resident MiB", 1), ("descriptors", 2), ("operations", 3), ("sessions", 4), ("records", 5))


def svg(samples: Sequence[Sequence[float]]) -> str:
    """Return the plot of samples, each with seconds and then what the rows show."""
    last = max(samples[-1][0], 1)
    rows = []
    for number, (name, column) in enumerate(_ROWS):
        most = max(1, *(sample[column] for sample in samples))
        points = " ".join(
            f"{LEFT + sample[0] / last * WIDTH:.1f},{HEIGHT * (number + 1) - sample[column] / most * (HEIGHT - 30):.1f}"
            for sample in samples
        )
        rows.append(
            f'<text x="4" y="{HEIGHT * number + 40}">{name}</text>'
            f'<text x="4" y="{HEIGHT * number + 56}">max {most:,.0f}</text>'
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{HEIGHT * (number + 1)}" y2="{HEIGHT * (number + 1)}"/>'
            f'<polyline points="{points}"/>'
        )
    size = f'viewBox="0 0 {LEFT + WIDTH + 10} {HEIGHT * len(_ROWS) + 24}"'
    style = "text{font:12px sans-serif}polyline{fill:none;stroke:#06c;stroke-width:1.5}line{stroke:#999}"
    footer = f'<text x="{LEFT}" y="{HEIGHT * len(_ROWS) + 16}">0 to {last / 60:.1f} minutes</text>'
    return "\n".join(
        (f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{style}</style>", *rows, footer, "</svg>\n")
    )
