"""The README's picture: ``python scripts/picture.py instdiff-demo/report.html docs/images/page.png``."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import which

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1200, 800


def main() -> None:
    page, picture = map(Path, sys.argv[1:3])
    browser = which("chromium") or which("chromium-browser") or which("google-chrome")
    with sync_playwright() as started:
        view = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = view.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.absolute().as_uri())
        tab.wait_for_timeout(2000)
        tab.screenshot(path=picture)
        view.close()
    print(f"{picture}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
