"""Several labels in one text: in a sidecar, or in a cell of a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: A tag in quotes with the separator behind it, or whatever stands before the next separator.
_TAG = re.compile(
    r'\s*(?:[;|]\s*(?="))?'
    r'(?:"((?:[^"]|"")+)"[^\S\n]*(?:[,;|\n]|$)|((?:(?![;|]\s*")[^,\n])+))'
)
#: Between words, behind the last, or with a space behind it, these separate tags as well; in `;)`
#: they don't.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])\s*[;|]\s*(?=[^\W_]|$)|;\s+")


def split_tags(text: str) -> list[str]:
    r"""Return the tags of a list separated by commas, semicolons, bars or lines, each once.

    A tag with one of these in it is in double quotes, which are doubled within it, as in CSV.

    >>> split_tags('sea, sun;sand;\n;), "AC, DC", |_|')
    ['sea', 'sun', 'sand', ';)', 'AC, DC', '|_|']
    """
    tags: list[str] = []
    for quoted, plain in _TAG.findall(text):
        found = [quoted.replace('""', '"')] if quoted else _BETWEEN_WORDS.split(plain)
        tags += filter(None, (tag.strip() for tag in found))
    return list(dict.fromkeys(tags))


def join_tags(tags: Sequence[str], separator: str = ", ") -> str:
    """Return a text from which `split_tags` gets the same tags.

    >>> join_tags(["sea", "AC, DC"])
    'sea, "AC, DC"'
    """
    return separator.join(map(_quoted, tags))


def _quoted(tag: str) -> str:
    """Return a tag in quotes, unless it stands for itself whatever stands beside it."""
    is_plain = not re.search(r'[,;|"\n]', tag)
    return tag if is_plain else '"' + tag.replace('"', '""') + '"'
