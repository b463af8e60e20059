"""The page: one file with its script and style in it, and what a browser may do with it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

__all__ = ["POLICY_FOR_DATA", "page"]

#: Nothing may be loaded, run or embedded: for all that is no page.
POLICY_FOR_DATA = "default-src 'none'; frame-ancestors 'none'"

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@functools.cache
def page() -> tuple[bytes, str]:
    """Return the page, and its Content-Security-Policy.

    Script and style are allowed by their hashes: what somebody managed to smuggle into the page
    would not run.
    """
    text = resources.files(__package__).joinpath("page.html").read_bytes()
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, body in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes[b'script'])}; "
        f"style-src {' '.join(hashes[b'style'])}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
