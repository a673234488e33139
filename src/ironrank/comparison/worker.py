"""One of several processes that work on a comparison: ``python -m ironrank.comparison.worker DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from ironrank.comparison import folder
from ironrank.errors import IronrankError


def main(out: Path) -> None:
    """Work on the cells of a comparison until none is free.

    Args:
        out: Its folder.
    """
    try:
        folder.work(out, *folder.read_cells(out))
    except IronrankError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
