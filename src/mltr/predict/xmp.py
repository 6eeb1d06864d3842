"""Keywords in XMP, the metadata that photo managers read, added to existing content.

Keywords stand in ``dc:subject``; see `mltr.data.keywords`. digiKam and Lightroom prefer their own
trees of keywords where there are some, so keywords go there too if the file has such a tree. A bag
of our own, ``mltr:labels``, says which keywords are ours: they, and no others, are taken out when
they no longer hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mltr.data.keywords import (
    DC,
    DESCRIPTION,
    OWN,
    RDF,
    SUBJECT,
    find_list,
    find_rdf,
    parse_xmp,
    texts_of,
)
from mltr.errors import MltrError

if TYPE_CHECKING:
    from lxml.etree import _Element

LABELS = f"{{{OWN}}}labels"
#: Trees of keywords: what separates their levels, and what stands for it in a name, if anything
#: does (digiKam keeps the a/b of other programs as a\\b). One at the top is its plain name.
TREES = {
    "{http://www.digikam.org/ns/1.0/}TagsList": ("/", "\\"),
    "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject": ("|", ""),
    "{http://ns.microsoft.com/photo/1.0/}LastKeywordXMP": ("/", ""),
}
EMPTY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="mltr">\n'
    f' <rdf:RDF xmlns:rdf="{RDF}">\n'
    f'  <rdf:Description rdf:about="" xmlns:dc="{DC}" xmlns:mltr="{OWN}"/>\n'
    " </rdf:RDF>\n</x:xmpmeta>\n"
).encode()
# What XML can't hold at all.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def has_labels(content: bytes) -> bool:
    """Whether a file, as bytes, was written by `set_labels`; a quick look, without parsing."""
    return OWN.encode() in content


def set_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """Return an XMP file with `labels` as keywords; everything else in it stays.

    `content` is the file so far, or empty. Labels of an earlier call that aren't among `labels`
    are taken out. A keyword that was there before, and a label that a person has taken out, stay
    as they are. Raises `MltrError` if this is no XMP, or its keywords are no list.
    """
    from lxml import etree

    root = parse_xmp(content or EMPTY)
    rdf = find_rdf(root)
    description = None if rdf is None else rdf.find(DESCRIPTION)
    if rdf is None or description is None:
        raise MltrError("not XMP: it has no rdf:Description")
    labels = [_FORBIDDEN.sub("\ufffd", label) for label in labels]
    subject, own = find_list(rdf, SUBJECT), find_list(rdf, LABELS)
    present, ours = list(texts_of(subject)), list(texts_of(own))
    added = [label for label in labels if label not in ours and label not in present]
    removed = [label for label in ours if label not in labels]
    if own is not None and not added and not removed:
        return content
    for name, prefix, entries in ((SUBJECT, "dc", subject), (LABELS, "mltr", own)):
        entries = _new_list(description, prefix, name) if entries is None else entries
        _update(entries, added, removed)
    for tree, (separator, stand_in) in TREES.items():
        if (entries := find_list(rdf, tree)) is not None:
            _update(entries, *(_in_tree(x, separator, stand_in) for x in (added, removed)))
    if not content:
        etree.indent(root, " ")
    after: bytes = etree.tostring(root.getroottree(), encoding="UTF-8", xml_declaration=True)
    return after + b"\n"


def _update(entries: _Element, added: Sequence[str], removed: Sequence[str]) -> None:
    from lxml import etree

    for entry in list(entries):
        if (entry.text or "") in removed:
            entries.remove(entry)
    for label in added:
        if label not in texts_of(entries):
            etree.SubElement(entries, f"{{{RDF}}}li").text = label


def _in_tree(labels: Sequence[str], separator: str, stand_in: str) -> list[str]:
    """Return labels as names in a tree, without those that would become several levels."""
    if stand_in:
        return [label.replace(separator, stand_in) for label in labels]
    return [label for label in labels if separator not in label]


def _new_list(description: _Element, prefix: str, name: str) -> _Element:
    from lxml import etree

    namespace = name[1:].partition("}")[0]
    found = etree.SubElement(description, name, nsmap={prefix: namespace})
    return etree.SubElement(found, f"{{{RDF}}}Bag")
