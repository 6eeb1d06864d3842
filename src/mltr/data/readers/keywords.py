"""Keywords that photo managers write: in XMP beside a photo or in it, and in IPTC.

Keywords stand in ``dc:subject`` (XMP specification, part 1, 8.3: Dublin Core namespace), a bag of
texts, and in data set 2:25 of IPTC-IIM 4.2. XMP counts where there are both, as the Metadata
Working Group's guidelines say (version 2.0, 3.1), and a file beside the photo before what is in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile, IptcImagePlugin

from mltr.data.images import FORMATS, IMAGE_SUFFIXES, told
from mltr.data.readers.labelled import LabelledPhoto, to_splits, with_parts_of_folders
from mltr.data.records import Split, normal
from mltr.data.tables.names import unify
from mltr.data.understood import Understood
from mltr.data.walk import Siblings, find_images, passed_over_kinds, with_count
from mltr.errors import BrokenImage, MltrError
from mltr.files.writing import open_regular

if TYPE_CHECKING:
    from lxml.etree import _Element

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
OWN = "urn:mltr:xmp:1.0/"  #: of the labels that `mltr predict` has added
LABELS = f"{{{OWN}}}labels"
DESCRIPTION = f"{{{RDF}}}Description"
SUBJECT = f"{{{DC}}}subject"
CONTAINERS = tuple(f"{{{RDF}}}{name}" for name in ("Bag", "Seq", "Alt"))
MAX_BYTES = 16_000_000  #: of XMP beside a photo; those of photo managers have some thousands
IPTC_KEYWORDS, IPTC_CHARSET = (2, 25), (1, 90)
UTF_8 = b"\x1b%G"  #: in `IPTC_CHARSET`
LOOKED_AT = 50  #: photos in which keywords are looked for, to find out what a folder is


def read_keywords(
    root: str | Path,
    classes: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    merge_case: bool | None = None,
) -> dict[str, Split]:
    """Read photos with keywords: in ``a.jpg.xmp`` or ``a.xmp`` beside ``a.jpg``, or in it.

    Folders named train, val and test are splits. A photo without a keyword is left out and
    counted: nobody has said what it shows. Without `classes`, every keyword is a class; with them,
    other keywords are skipped and counted; if they differ from a class in capitals alone, they are
    that class if `merge_case`, and refused if it is None. Raises `MltrError` for XMP that can't be
    read.
    """
    root = Path(root)
    passed_over: Counter[str] = Counter()
    photos, without, used, siblings = [], 0, Counter[str](), Siblings()
    for image in with_count(find_images(root, ignore, passed_over), "reading keywords"):
        keywords, where = keywords_of(image, siblings)
        without += not keywords
        if keywords:
            used[where] += 1
            path = image.relative_to(root)
            photos.append(LabelledPhoto(image, path.as_posix(), [*map(normal, keywords)]))
    if not photos:
        raise MltrError(f"{root}: none of its {without} photos has a keyword")
    counts = {"photos without a keyword, left out": without} | passed_over_kinds(passed_over)
    if classes:
        photos, skipped = _of_classes(photos, classes, str(root), merge_case)
        counts["other keywords, skipped"] = skipped
    details = tuple(f"{number:,} {where}" for where, number in sorted(used.items()))
    meanings = {"not among the keywords": "absent"}
    understood = Understood("keywords", (), details, meanings=meanings, counts=counts)
    return to_splits(with_parts_of_folders(root, photos), classes, understood, str(root))


def _of_classes(
    photos: Sequence[LabelledPhoto], classes: Sequence[str], where: str, merge_case: bool | None
) -> tuple[list[LabelledPhoto], int]:
    """Return the photos with those of their keywords that are classes, and how many aren't."""
    used = Counter(word for photo in photos for word in photo.labels)
    alike = {name.casefold() for name in classes}
    similar = {word: number for word, number in used.items() if word.casefold() in alike}
    called = unify(similar, merge_case, where, classes)
    called = {word: name for word, name in called.items() if name in classes}
    found = [
        replace(photo, labels=[called[word] for word in photo.labels if word in called])
        for photo in photos
    ]
    return found, len(used.keys() - called.keys())


def have_keywords(images: Iterable[Path]) -> bool:
    """Whether one of the first photos has keywords, beside it or in it."""
    siblings = Siblings()
    return any(_may_have_keywords(image, siblings) for image in islice(images, LOOKED_AT))


def _may_have_keywords(image: Path, siblings: Siblings) -> bool:
    sidecar = _sidecar(image, siblings)
    if sidecar is None:
        return any(_embedded(image))
    try:
        with open_regular(sidecar) as file:
            return b"subject" in file.read(MAX_BYTES)
    except OSError:  # whoever reads it will tell
        return False


def keywords_of(image: Path, siblings: Siblings) -> tuple[list[str], str]:
    """Return a photo's keywords, each once, and where they stand.

    Raises `MltrError` for a file beside it that can't be read.
    """
    sidecar = _sidecar(image, siblings)
    if sidecar is not None:
        found, added = _lists_in_file(sidecar)
        if found:
            where = "beside the photos" if added is None else "that mltr has added to"
            return found, f"in files {where}"
    return _keywords_within(image)


def hidden_keywords(image: Path, sidecar: Path) -> list[str]:
    """Return what keywords in a file beside a photo would hide: those in another file, or within.

    Not those that mltr has added there, or of a file that other photos share. Of a photo or a file
    that can't be read there are none.
    """
    names = (f"{name}{suffix}" for name in (image.name, image.stem) for suffix in (".xmp", ".XMP"))
    for other in map(image.with_name, names):
        if not _is_file(other) or (sidecar.is_file() and other.samefile(sidecar)):
            continue
        if other.stem == image.stem and _has_namesake(image):
            continue
        with suppress(MltrError):
            found, added = _lists_in_file(other)
            if own := [word for word in found if word not in (added or ())]:
                return own
    return _keywords_within(image)[0]


def _has_namesake(image: Path) -> bool:
    """Whether there is a photo beside it that differs in its suffix alone."""
    others = (image.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)
    return any(other.name != image.name and _is_file(other) for other in others)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its name is too long
        return False


def _lists_in_file(sidecar: Path) -> tuple[list[str], list[str] | None]:
    """Return the keywords in a file, and those of them that mltr has added, if it has been there.

    An empty file, as is left where a program was interrupted, has none.
    """
    try:
        with open_regular(sidecar) as file:
            content = file.read(MAX_BYTES)
        rdf = find_rdf(parse_xmp(content)) if content else None
        added = _list_in(rdf, LABELS) if OWN.encode() in content else None
        return _list_in(rdf, SUBJECT), added
    except (OSError, MltrError) as error:
        raise MltrError(f"{sidecar}: can't be read ({error})") from error


def _keywords_within(image: Path) -> tuple[list[str], str]:
    xmp, iptc = _embedded(image)
    try:
        return keywords_in_xmp(xmp) if xmp else iptc, "in XMP" if xmp else "in IPTC"
    except MltrError:
        return iptc, "in IPTC"


def _sidecar(image: Path, siblings: Siblings) -> Path | None:
    return siblings.find(image, image.with_name(f"{image.name}.xmp"), image.with_suffix(".xmp"))


def _embedded(image: Path) -> tuple[bytes, list[str]]:
    """Return XMP with keywords that is in a photo, and its keywords in IPTC; no pixel is decoded.

    A photo that can't be read has none: whoever opens it will tell.
    """
    try:
        with told(str(image)), open_regular(image) as file, Image.open(file, formats=FORMATS) as it:
            xmp = it.info.get("xmp", b"")
            xmp = xmp.encode() if isinstance(xmp, str) else xmp
            xmp = xmp.strip(b"\0 \n")  # Windows pads it
            return xmp if b"subject" in xmp else b"", _keywords_in_iptc(it)
    except BrokenImage:
        return b"", []


def _keywords_in_iptc(image: ImageFile.ImageFile) -> list[str]:
    try:
        found: dict[Any, Any] = IptcImagePlugin.getiptcinfo(image) or {}
    except (SyntaxError, OSError, ValueError):  # damaged; the photo may have keywords in XMP
        return []
    entries = found.get(IPTC_KEYWORDS, [])
    texts = (_decode(e, found) for e in (entries if isinstance(entries, list) else [entries]))
    return _distinct(texts)


def _decode(text: bytes, iptc: dict[Any, Any]) -> str:
    """Return a text in UTF-8, as nearly all are, or in the encoding of Western Europe."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8" if iptc.get(IPTC_CHARSET) == UTF_8 else "cp1252", "replace")


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, (text.strip() for text in texts))))


# -- XMP ---------------------------------------------------------------------------------------


def keywords_in_xmp(content: bytes) -> list[str]:
    """Return the keywords in XMP, each once; raises `MltrError` for what is no XMP."""
    return _list_in(find_rdf(parse_xmp(content)), SUBJECT)


def _list_in(rdf: _Element | None, name: str) -> list[str]:
    return [] if rdf is None else _distinct(texts_of(find_list(rdf, name)))


def parse_xmp(content: bytes) -> _Element:
    """Return the root of an XMP file; raises `MltrError`. Nothing outside it is read."""
    try:
        from lxml import etree
    except ImportError as error:
        raise MltrError("reading XMP needs `pip install 'mltr[xmp]'`") from error

    try:
        root = etree.fromstring(
            content,
            etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False),
        )
    except (etree.XMLSyntaxError, ValueError) as error:
        raise MltrError(f"not XMP: {error}") from error
    if root.getroottree().docinfo.doctype:
        raise MltrError("not XMP: it has a document type")
    return root


def find_rdf(root: _Element) -> _Element | None:
    """Return the part of XMP that has the properties."""
    return root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")


def find_list(rdf: _Element, name: str) -> _Element | None:
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


def texts_of(entries: _Element | None) -> Iterator[str]:
    """Yield the texts in a container."""
    yield from () if entries is None else (entry.text or "" for entry in entries)
