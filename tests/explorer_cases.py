"""What the tests of both explorer pages share."""

from pathlib import Path

STATIC = Path(__file__).parents[1] / "book" / "_static"


def script(name):
    """An explorer's script behind the part that both pages load first."""
    return "".join((STATIC / part).read_text("utf-8") for part in ("explorer_parts.js", name))
