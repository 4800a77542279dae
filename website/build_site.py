"""Build the documentation site in build/site: `make docs`.

    python website/build_site.py

Collects the pages in build/pages and checks that the navigation in mkdocs.yml names each of them. Then Zensical builds
them strictly: a broken link, a missing heading or any other warning ends the build. Last, it looks in the HTML for
Markdown that was not rendered.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from site_pages import REPOSITORY, BrokenLinkError, collect, navigation_faults

PAGES, SITE = REPOSITORY / "build" / "pages", REPOSITORY / "build" / "site"
UNRENDERED = re.compile(r"<(?:p|li)>(?:[^<]|<(?!/p>|/li>))*?\n(?:[-*] |\d+\. |\||```|#+ )[^\n<]*")
"""A list, table, block of code or heading that is text of a paragraph: it lacks an empty line, or its indentation."""


def unrendered(site: Path) -> list[str]:
    """Return page and text of each piece of Markdown that stayed as it is."""
    return [
        f"{page.relative_to(site)}: not rendered: {found.splitlines()[-1][:80]}"
        for page in sorted(site.rglob("*.html"))
        for found in UNRENDERED.findall(re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL))
    ]


def main() -> int:
    """Build the site. Returns the exit code."""
    try:
        collect(PAGES)
    except BrokenLinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    faults = navigation_faults()
    if not faults:
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        ended = subprocess.run(command, cwd=REPOSITORY, check=False)
        if ended.returncode:
            return ended.returncode
        faults = unrendered(SITE)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{len(list(SITE.rglob('*.html')))} pages: {SITE.relative_to(REPOSITORY)}/index.html")
        print(f"The search needs a web server: python -m http.server --directory {SITE.relative_to(REPOSITORY)}")
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
