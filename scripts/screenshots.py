"""Pictures of the report for the README, taken in headless Chromium.

python -m localgp.report
python scripts/screenshots.py exp/report.html docs/images "Mask viewer"
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.chromium import Chromium, find_chromium  # the browser that the report's test uses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("headings", nargs="*", help="sections and figures to take; all where none is named")
    args = parser.parse_args()
    binary = find_chromium()
    if binary is None:
        raise SystemExit("no Chromium found; install one, or name it: CHROMIUM=/path/to/chromium")
    if not args.report.exists():
        raise SystemExit(f"{args.report} does not exist; make it: python -m localgp.report")
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Chromium(binary, Path(profile)) as page:
        page.show(args.report, width=1100, height=760)
        headings = page.run("[...document.querySelectorAll('h2, h3')].map(h => h.textContent)")
        unknown = sorted(set(args.headings) - set(headings))
        if unknown:
            raise SystemExit(f"the report has no heading {', '.join(unknown)}; it has: {', '.join(headings)}")
        for heading in args.headings or headings:
            place = headings.index(heading)
            page.run(
                f"document.querySelectorAll('h2, h3')[{place}].scrollIntoView({{behavior: 'instant'}}),"
                "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
            )
            name = "".join(c if c.isalnum() else "-" for c in heading.lower()).strip("-")
            partial = page.screenshot(args.output / f".{name}.png")
            os.replace(partial, args.output / f"report-{name}.png")
            print(args.output / f"report-{name}.png")


if __name__ == "__main__":
    main()
