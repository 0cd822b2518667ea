"""Matplotlib figures as inline SVG whose colours are CSS variables, so that one figure serves light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

#: CSS variable -> the colour that stands for it while matplotlib draws; each is used for nothing else.
COLOURS = MappingProxyType(
    {
        name: f"#0101{number:02x}"
        for number, name in enumerate(
            (
                "ink", "muted", "grid", "surface", "accent", "bad",
                "heat-0", "heat-1", "heat-2", "heat-3", "heat-4", "heat-5", "heat-6", "on-low", "on-high",
            ),
            1,
        )
    }
)  # fmt: skip
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["grid"],
    "grid.color": COLOURS["grid"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw and save inside it; `name` keeps the ids of one figure apart from those of others on the page."""
    import matplotlib

    settings: Any = _STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        yield


def inline(figure: Any, name: str, description: str, shrinks: bool = True) -> Markup:
    """Return a figure as an <svg> element that screen readers call `description`.

    One that does not shrink keeps most of its width on a narrow page, to be scrolled.
    """
    stream = io.StringIO()
    unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=unnamed)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    # The same ids in two figures of one page would clip one by the shape of the other.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    width = figure.get_size_inches()[0] * 72
    least = "" if shrinks else f"min-width: {0.72 * width:.0f}pt"
    head = f'<svg role="img" aria-label="{escape(description)}" style="max-width: {width:.0f}pt; {least}"'
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    # Names come from matplotlib, which escapes them.
    return Markup(head + text.removeprefix("<svg"))
