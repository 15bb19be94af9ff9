"""MkDocs hook: links out of docs/, which lead somewhere in a checkout alone, become their text."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page without links to files beside docs/."""
    return OUTSIDE.sub(r"\1", markdown)
