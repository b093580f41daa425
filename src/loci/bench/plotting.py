"""Pictures into files; matplotlib is loaded when the first is drawn."""

from __future__ import annotations

from typing import Any  # matplotlib is an extra

from loci.errors import missing_extra


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing into files.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise missing_extra("matplotlib", "bench") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "loci"  # the same picture is the same file
    from matplotlib import pyplot as found

    return found
