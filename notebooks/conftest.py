"""Let nbval compare numbers with a tolerance: the text must be equal, the numbers may differ a little.

The default is ``atol`` 0.02, which suits results printed to two decimals. A cell overrides it in its metadata:
``"nbval": {"atol": 0.05, "rtol": 0.1}``. A count that must be exact belongs in an ``assert``.
"""

import math
import re

ATOL, RTOL = 0.02, 0.0
NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class Tolerant(str):
    """A text that equals another if the two differ in their numbers only, and by no more than the tolerance."""

    __hash__ = str.__hash__
    atol, rtol = ATOL, RTOL

    def __eq__(self, other):
        if str.__eq__(self, other) or not isinstance(other, str):
            return str.__eq__(self, other)
        if " ".join(NUMBER.sub("#", self).split()) != " ".join(NUMBER.sub("#", other).split()):
            return False
        ours, theirs = ([float(x.replace("\u2212", "-")) for x in NUMBER.findall(text)] for text in (self, other))
        atol = self.atol * (1 + 1e-9)  # 0.05 - 0.03 is no more than 0.02, though not in binary
        return all(math.isclose(a, b, rel_tol=self.rtol, abs_tol=atol) for a, b in zip(ours, theirs, strict=True))

    def __ne__(self, other):
        return not self == other


def tolerant(text, metadata):
    """The text, with the tolerance that its cell's metadata asks for."""
    result, tolerance = Tolerant(text), metadata.get("nbval", {})
    result.atol, result.rtol = float(tolerance.get("atol", ATOL)), float(tolerance.get("rtol", RTOL))
    return result


def pytest_configure():
    """Teach nbval, if it is there, to compare with :class:`Tolerant`."""
    try:
        from nbval.plugin import IPyNbCell
    except ImportError:
        return
    if hasattr(IPyNbCell, "exact_sanitize"):
        return
    IPyNbCell.exact_sanitize = IPyNbCell.sanitize

    def sanitize(self, text):
        cleaned = self.exact_sanitize(text)
        return tolerant(cleaned, self.cell.metadata) if isinstance(cleaned, str) else cleaned

    IPyNbCell.sanitize = sanitize
