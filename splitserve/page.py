"""Reports as one HTML file that needs nothing else: no script, no font, no picture beside it."""

import io
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def draw_svg(figure: Figure) -> Markup:
    """Turn a figure into SVG that can stand inside a page."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704  # our own drawing


def write_page(target: Path, template: str, content: Mapping[str, object]) -> None:
    """Fill a template and write the page.

    Args:
        target: HTML file.
        template: its name in the folder `pages`; it may extend `page.html.j2`.
        content: what the template names; anything else that it names is an error.
    """
    environment = Environment(
        loader=PackageLoader("splitserve", "pages"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(environment.get_template(template).render(content), encoding="utf-8")
