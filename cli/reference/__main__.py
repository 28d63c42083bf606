"""Write the reference pages: `python -m cli.reference` renews those of docs/.

With `--check` nothing is written, and pages that are not current are named with exit status 1.
"""

import argparse
import sys
from pathlib import Path

from cli.reference.pages import stale_pages, write_pages

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        stale = ", ".join(stale_pages(options.folder))
        sys.exit(f"not current: {stale}; run python -m cli.reference" if stale else None)
    write_pages(options.folder)
