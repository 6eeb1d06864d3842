"""Keywords in XMP, the metadata that photo managers read, added to existing content.

Keywords stand in ``dc:subject`` (XMP specification, part 1, 8.3: Dublin Core namespace), a bag of
texts. digiKam and Lightroom prefer their own trees of keywords where there are some, so keywords go
there too if the file has such a tree. A bag of our own, ``mltr:labels``, says which keywords are
ours: they, and no others, are taken out when they no longer hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mltr.errors import MltrError

if TYPE_CHECKING:
    from lxml.etree import _Element

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
OWN = "urn:mltr:xmp:1.0/"
DESCRIPTION = f"{{{RDF}}}Description"
SUBJECT = f"{{{DC}}}subject"
LABELS = f"{{{OWN}}}labels"
#: Trees of keywords; one at the top is its plain name in all of them.
TREES = (
    "{http://www.digikam.org/ns/1.0/}TagsList",
    "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject",
    "{http://ns.microsoft.com/photo/1.0/}LastKeywordXMP",
)
CONTAINERS = tuple(f"{{{RDF}}}{name}" for name in ("Bag", "Seq", "Alt"))
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

    root = _parse(content or EMPTY)
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")
    description = None if rdf is None else rdf.find(DESCRIPTION)
    if rdf is None or description is None:
        raise MltrError("not XMP: it has no rdf:Description")
    labels = [_FORBIDDEN.sub("\ufffd", label) for label in labels]
    subject, own = _find_list(rdf, SUBJECT), _find_list(rdf, LABELS)
    present, ours = _texts(subject), _texts(own)
    added = [label for label in labels if label not in ours and label not in present]
    removed = [label for label in ours if label not in labels]
    if own is not None and not added and not removed:
        return content
    lists = [
        _new_list(description, "dc", SUBJECT) if subject is None else subject,
        _new_list(description, "mltr", LABELS) if own is None else own,
        *(found for tree in TREES if (found := _find_list(rdf, tree)) is not None),
    ]
    for entries in lists:
        for entry in list(entries):
            if (entry.text or "") in removed:
                entries.remove(entry)
        for label in added:
            if label not in _texts(entries):
                etree.SubElement(entries, f"{{{RDF}}}li").text = label
    if not content:
        etree.indent(root, " ")
    after: bytes = etree.tostring(root.getroottree(), encoding="UTF-8", xml_declaration=True)
    return after + b"\n"


def _parse(content: bytes) -> _Element:
    from lxml import etree

    try:
        root = etree.fromstring(
            content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        )
    except etree.XMLSyntaxError as error:
        raise MltrError(f"not XMP: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise MltrError("not XMP: it has a document type")
    return root


def _find_list(rdf: _Element, name: str) -> _Element | None:
    """Return the container of a property that is a list, or None if it isn't there."""
    for description in rdf.iterfind(DESCRIPTION):
        found = description.find(name)
        if found is not None:
            if len(found) != 1 or found[0].tag not in CONTAINERS:
                raise MltrError(f"its {name.partition('}')[2]} is not a list")
            return found[0]
        if name in description.attrib:
            raise MltrError(f"its {name.partition('}')[2]} is not a list")
    return None


def _new_list(description: _Element, prefix: str, name: str) -> _Element:
    from lxml import etree

    namespace = name[1:].partition("}")[0]
    found = etree.SubElement(description, name, nsmap={prefix: namespace})
    return etree.SubElement(found, f"{{{RDF}}}Bag")


def _texts(entries: _Element | None) -> list[str]:
    return [] if entries is None else [entry.text or "" for entry in entries]
