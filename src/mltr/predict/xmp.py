"""Keywords in XMP, the metadata that photo managers read, added to existing content.

Keywords are in ``dc:subject``; see `mltr.data.readers.keywords`. digiKam and Lightroom prefer
their own trees of keywords where there are some, so keywords go there too if the file has such a
tree. A bag of our own, ``mltr:labels``, lists the keywords that we wrote: only these are removed
when they no longer hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mltr.data.hierarchy import path_of
from mltr.data.readers.keywords import (
    DC,
    DESCRIPTION,
    LABELS,
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

# What XML can't hold at all.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(names: Iterable[str]) -> list[str]:
    """Return names without what XML can't hold."""
    return [_FORBIDDEN.sub("\ufffd", name) for name in names]


class Tree(NamedTuple):
    """A property with a tree of keywords; a keyword at the top is its plain name."""

    tag: str
    separator: str  #: between the levels
    stand_in: str = ""  #: for the separator in a name, if there is any
    prefix: str = ""  #: of the namespace, if labels that imply others need this tree
    container: str = "Bag"

    def path(self, levels: Iterable[str]) -> str | None:
        """Return a keyword as it is called here; None if its names would get other levels."""
        names = [n.replace(self.separator, self.stand_in or self.separator) for n in levels]
        return None if any(self.separator in n for n in names) else self.separator.join(names)

    def names(self, labels: Sequence[str], hierarchy: Mapping[str, str]) -> list[str]:
        """Return labels as they are called here, without those that would get other levels."""
        paths = (self.path(_clean(path_of(label, hierarchy))) for label in labels)
        return [path for path in paths if path is not None]

    def entries_of(self, labels: Sequence[str], entries: Iterable[str]) -> list[str]:
        """Return the entries that are these labels, wherever in the tree."""
        called = set(self.names(labels, {}))
        return [entry for entry in entries if entry.rpartition(self.separator)[2] in called]


TREES = (
    # digiKam keeps the a/b of other programs as a\b, and reads its tags from a Seq alone.
    Tree("{http://www.digikam.org/ns/1.0/}TagsList", "/", "\\", "digiKam", "Seq"),
    Tree("{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject", "|", prefix="lr"),
    Tree("{http://ns.microsoft.com/photo/1.0/}LastKeywordXMP", "/"),
)
EMPTY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="mltr">\n'
    f' <rdf:RDF xmlns:rdf="{RDF}">\n'
    f'  <rdf:Description rdf:about="" xmlns:dc="{DC}" xmlns:mltr="{OWN}"/>\n'
    " </rdf:RDF>\n</x:xmpmeta>\n"
).encode()


def has_labels(content: bytes) -> bool:
    """Whether a file, as bytes, was written by `set_labels`; a quick look, without parsing."""
    return OWN.encode() in content


def set_labels(
    content: bytes,
    labels: Sequence[str],
    hierarchy: Mapping[str, str] | None = None,
    judged: Collection[str] | None = None,
    keywords: Callable[[], Sequence[str]] = tuple,
) -> bytes:
    """Return an XMP file with `labels` as keywords; everything else in it stays.

    `content` is the file so far, or empty. Labels of an earlier call that aren't among `labels`
    are taken out, if they are among those `judged` (None: all). A keyword that was there before,
    and a label that a person has taken out, stay as they are. `hierarchy` has the parent of each
    child: with it, labels get their places in trees of keywords, which are added where there are
    none. A file without keywords, ours or others, begins with those that the photo has elsewhere,
    which `keywords` finds. Raises `MltrError` if this is no XMP, or its keywords are no list.
    """
    from lxml import etree

    root = parse_xmp(content or EMPTY)
    rdf = find_rdf(root)
    description = None if rdf is None else rdf.find(DESCRIPTION)
    if rdf is None or description is None:
        raise MltrError("not XMP: it has no rdf:Description")
    labels = _clean(labels)
    is_bare = find_list(rdf, SUBJECT) is None and find_list(rdf, LABELS) is None
    if is_bare and (hidden := keywords()):
        _update(_new_list(description, "dc", SUBJECT), _clean(hidden), [])
    subject, own = find_list(rdf, SUBJECT), find_list(rdf, LABELS)
    present, ours = list(texts_of(subject)), list(texts_of(own))
    added = [label for label in labels if label not in ours and label not in present]
    # A label of ours that a person has taken out stays among ours, so that it is never added again.
    removed = [label for label in ours if label in present and label not in labels]
    if judged is not None and removed:
        known = set(_clean(judged))
        removed = [label for label in removed if label in known]
    kept = [label for label in labels if label in added or (label in ours and label in present)]
    hierarchy = hierarchy or {}
    new_trees = [
        tree
        for tree in TREES
        if tree.prefix and hierarchy.keys() & kept and find_list(rdf, tree.tag) is None
    ]
    if own is not None and not added and not removed and not new_trees:
        return content
    for name, prefix, entries in ((SUBJECT, "dc", subject), (LABELS, "mltr", own)):
        entries = _new_list(description, prefix, name) if entries is None else entries
        _update(entries, added, removed)
    for tree in TREES:
        if (entries := find_list(rdf, tree.tag)) is not None:
            gone = tree.entries_of(removed, texts_of(entries))
            _update(entries, tree.names(added, hierarchy), gone)
    # Whoever prefers a tree would no longer see the keywords that others have given.
    others = [word for word in present if word not in ours]
    begun = {tree.tag: _in_tree(rdf, tree, others) for tree in new_trees}
    for tree in new_trees:
        entries = _new_list(description, tree.prefix, tree.tag, tree.container)
        _update(entries, [*begun[tree.tag], *tree.names(kept, hierarchy)], [])
    if not content:
        etree.indent(root, " ")
    after: bytes = etree.tostring(root.getroottree(), encoding="UTF-8", xml_declaration=True)
    return after + b"\n"


def _in_tree(rdf: _Element, tree: Tree, keywords: Sequence[str]) -> list[str]:
    """Return keywords as a tree names them: at the levels that another tree in the file gives."""
    paths: list[str] = []
    for other in TREES:
        for keyword in keywords:
            found = other.entries_of([keyword], texts_of(find_list(rdf, other.tag)))
            levels = (entry.split(other.separator) for entry in found)
            paths += filter(None, map(tree.path, levels))
    placed = {path.rpartition(tree.separator)[2] for path in paths}
    plain = [name for name in tree.names(keywords, {}) if name not in placed]
    return list(dict.fromkeys([*paths, *plain]))


def _update(entries: _Element, added: Sequence[str], removed: Sequence[str]) -> None:
    from lxml import etree

    for entry in list(entries):
        if (entry.text or "") in removed:
            entries.remove(entry)
    for label in added:
        if label not in texts_of(entries):
            etree.SubElement(entries, f"{{{RDF}}}li").text = label


def _new_list(description: _Element, prefix: str, name: str, container: str = "Bag") -> _Element:
    from lxml import etree

    namespace = name[1:].partition("}")[0]
    found = etree.SubElement(description, name, nsmap={prefix: namespace})
    return etree.SubElement(found, f"{{{RDF}}}{container}")
