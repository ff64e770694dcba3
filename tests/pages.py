"""The pages of the documentation, and the commands that they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[1]
PAGES: Final = (
    *("README.md", "CONTRIBUTING.md"),
    *sorted(f"docs/{page.name}" for page in PROJECT.glob("docs/*.md")),
)


def commands(page: str) -> list[str]:
    """The commands in the ``console`` blocks of a page, without their comments."""
    text = (PROJECT / page).read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s+#\s.*", "", line[2:]) for line in lines if re.match(r"[$#] ", line)]
