"""Keywords in XMP: where photo managers look for them, and nothing else touched."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mltr.data.readers.keywords import keywords_in_xmp, keywords_of
from mltr.data.walk import Siblings
from mltr.errors import MltrError
from mltr.predict.sidecars import XmpSidecars
from mltr.predict.xmp import EMPTY, has_labels, set_labels

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
TAGS_LIST = "{http://www.digikam.org/ns/1.0/}TagsList"
HIERARCHICAL = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"

# Much as Lightroom writes it: settings as attributes, a packet around, line breaks in a value.
LIGHTROOM = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- kept -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
    xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="4" crs:Exposure2012="+0.35"
   photoshop:Instructions="first line&#xA;second line">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>holiday</rdf:li>
     <rdf:li>sea</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>travel|holiday</rdf:li>
     <rdf:li>sea</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <dc:title><rdf:Alt><rdf:li xml:lang="x-default">Caf\u00e9 &amp; sea</rdf:li></rdf:Alt></dc:title>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""

# Much as digiKam writes it: a description of its own for each namespace, other prefixes.
DIGIKAM = """\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<r:Description r:about="" xmlns:d="http://www.digikam.org/ns/1.0/"><d:TagsList><r:Seq>
<r:li>People/Anna</r:li></r:Seq></d:TagsList></r:Description>
<r:Description r:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><r:Bag>
<r:li>Anna</r:li></r:Bag></dc:subject></r:Description></r:RDF></x:xmpmeta>
"""


def listed(content: bytes, name: str = SUBJECT) -> list[str]:
    """What a reader of XMP finds, by another parser."""
    root = ElementTree.fromstring(content)
    properties = [found for d in root.iter(f"{RDF}Description") for found in d.findall(name)]
    assert len(properties) <= 1
    return [item.text or "" for found in properties for item in found.iter(f"{RDF}li")]


def test_a_new_file() -> None:
    content = set_labels(b"", ["sea", "rock & roll", "<grün>"])
    assert listed(content) == ["sea", "rock & roll", "<grün>"]
    assert listed(content, TAGS_LIST) == listed(content, HIERARCHICAL) == []
    root = ElementTree.fromstring(content)
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    description = root.find(f"{RDF}RDF/{RDF}Description")
    assert description is not None
    assert description.get(f"{RDF}about") == ""
    assert has_labels(content)
    assert set_labels(content, ["sea", "rock & roll", "<grün>"]) == content
    assert listed(set_labels(b"", [])) == []


def test_what_is_there_stays() -> None:
    before = LIGHTROOM.encode()
    assert not has_labels(before)
    after = set_labels(before, ["sea", "sunset"])
    assert listed(after) == ["holiday", "sea", "sunset"]
    assert listed(after, HIERARCHICAL) == ["travel|holiday", "sea", "sunset"]
    assert b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>' in after
    assert b"<!-- kept -->" in after
    assert b'<?xpacket end="w"?>' in after
    assert all_but_labels(after, {"sunset"}) == all_but_labels(before, set())
    # The label that was theirs as well stays theirs.
    again = set_labels(after, [])
    assert listed(again) == ["holiday", "sea"]
    assert all_but_labels(again, set()) == all_but_labels(before, set())


def all_but_labels(content: bytes, labels: set[str]) -> list[object]:
    """Every element, attribute and text in order, without our bag and without some keywords."""
    found: list[object] = []

    def visit(element: ElementTree.Element) -> None:
        if element.tag.startswith("{urn:mltr") or element.text in labels:
            return
        found.append((element.tag, dict(element.attrib), (element.text or "").strip()))
        for child in element:
            visit(child)

    visit(ElementTree.fromstring(content))
    return found


def test_trees_and_prefixes_of_others() -> None:
    after = set_labels(DIGIKAM.encode(), ["sea"])
    assert listed(after) == ["Anna", "sea"]
    assert listed(after, TAGS_LIST) == ["People/Anna", "sea"]
    assert listed(after, HIERARCHICAL) == []
    assert listed(set_labels(DIGIKAM.encode("utf-8").replace(b"Anna", "Ännä".encode()), ["x"])) == [
        "Ännä",
        "x",
    ]
    utf16 = DIGIKAM.replace("UTF-8", "UTF-16").encode("utf-16")
    assert listed(set_labels(utf16, ["sea"])) == ["Anna", "sea"]


def test_labels_stay_whole_in_trees() -> None:
    """`/` and `|` separate the levels of a tree, and none has a way to write them in a name."""
    labels = ["AC/DC", "a|b"]
    digikam = set_labels(DIGIKAM.encode(), labels)
    assert listed(digikam) == ["Anna", *labels]
    assert listed(digikam, TAGS_LIST) == ["People/Anna", "AC\\DC", "a|b"]  # as digiKam keeps it
    lightroom = set_labels(LIGHTROOM.encode(), labels)
    assert listed(lightroom) == ["holiday", "sea", *labels]
    assert listed(lightroom, HIERARCHICAL) == ["travel|holiday", "sea", "AC/DC"]
    for content, tree in ((digikam, TAGS_LIST), (lightroom, HIERARCHICAL)):
        assert keywords_in_xmp(content) == listed(content)
        assert not set(listed(set_labels(content, []), tree)) & {"AC/DC", "AC\\DC", "a|b"}


def test_labels_that_no_longer_hold_go_and_removed_ones_stay_away() -> None:
    first = set_labels(DIGIKAM.encode(), ["sea", "sunset"])
    second = set_labels(first, ["sunset", "tree"])
    assert listed(second) == ["Anna", "sunset", "tree"]
    assert listed(second, TAGS_LIST) == ["People/Anna", "sunset", "tree"]
    root = ElementTree.fromstring(second)
    for name in (SUBJECT, TAGS_LIST):
        bag = root.find(f".//{name}")[0]
        bag.remove(next(item for item in bag if item.text == "tree"))
    by_hand = ElementTree.tostring(root)
    assert listed(by_hand) == ["Anna", "sunset"]
    third = set_labels(by_hand, ["sunset", "tree", "path"])
    assert listed(third) == ["Anna", "sunset", "path"]


def test_only_labels_that_were_judged_are_withdrawn() -> None:
    content = set_labels(set_labels(b"", ["sea", "sand"]), ["palm"], judged=["palm", "sand"])
    assert listed(content) == ["sea", "palm"]


def test_a_removed_label_stays_away_even_if_it_did_not_hold_meanwhile() -> None:
    content = set_labels(b"", ["sea", "trees"]).replace(b"<rdf:li>trees</rdf:li>", b"", 1)
    for labels in (["sea", "trees"], ["sea"], ["sea", "trees"]):
        content = set_labels(content, labels)
        assert listed(content) == ["sea"]


@given(st.lists(st.lists(st.text(max_size=8), max_size=5, unique=True), min_size=1, max_size=4))
def test_any_labels_in_any_order(steps: list[list[str]]) -> None:
    content = DIGIKAM.encode()
    for labels in steps:
        content = set_labels(content, labels)
        found = listed(content)
        assert found[0] == "Anna"
        assert len(found) == len(set(found))
        if all(label.isalnum() and label.isascii() for label in labels):
            assert set(found) == {"Anna", *labels}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not XML", "not XMP"),
        (b"<svg/>", "no rdf:Description"),
        (b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
        (LIGHTROOM.encode()[:-300], "not XMP"),
        (
            DIGIKAM.replace("<r:Bag>", "").replace("</r:Bag>", "").encode(),
            "subject is not a list",
        ),
        (
            DIGIKAM.replace("<dc:subject><r:Bag>\n<r:li>Anna</r:li></r:Bag></dc:subject>", "")
            .replace('xmlns:dc="', 'dc:subject="sea" xmlns:dc="')
            .encode(),
            "subject is not a list",
        ),
    ],
)
def test_what_cannot_be_merged_is_left_alone(content: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(MltrError, match=told):
        set_labels(content, ["sea"])
    sidecar = tmp_path / "photo.jpg.xmp"
    sidecar.write_bytes(content)
    assert told in XmpSidecars().write(tmp_path / "photo.jpg", ["sea"])
    assert sidecar.read_bytes() == content


TREE = {"dog": "pet", "pet": "animal"}


def test_labels_in_a_hierarchy_have_their_places_in_trees_of_keywords() -> None:
    labels = ["dog", "animal", "sea"]
    content = set_labels(b"", labels, TREE)
    assert listed(content) == labels
    assert listed(content, HIERARCHICAL) == ["animal|pet|dog", "animal", "sea"]
    assert listed(content, TAGS_LIST) == ["animal/pet/dog", "animal", "sea"]
    root = ElementTree.fromstring(content)
    # digiKam reads a Seq alone: exiv2 has TagsList as one.
    assert root.find(f".//{TAGS_LIST}/{RDF}Seq") is not None
    assert root.find(f".//{HIERARCHICAL}/{RDF}Bag") is not None
    assert set_labels(content, labels, TREE) == content
    less = set_labels(content, ["sea"], TREE)
    assert listed(less) == listed(less, HIERARCHICAL) == listed(less, TAGS_LIST) == ["sea"]
    plain = set_labels(b"", ["sea"], TREE)
    assert listed(plain, HIERARCHICAL) == listed(plain, TAGS_LIST) == []


def test_trees_of_others_get_the_whole_path() -> None:
    after = set_labels(LIGHTROOM.encode(), ["sea", "dog"], TREE)
    assert listed(after, HIERARCHICAL) == ["travel|holiday", "sea", "animal|pet|dog"]
    # digiKam reads nothing but this one: the keywords of others are in it, too.
    assert listed(after, TAGS_LIST) == ["travel/holiday", "sea", "animal/pet/dog"]
    after = set_labels(DIGIKAM.encode(), ["dog"], TREE)
    assert listed(after, TAGS_LIST) == ["People/Anna", "animal/pet/dog"]
    assert listed(after, HIERARCHICAL) == ["People|Anna", "animal|pet|dog"]
    plain = set_labels(b"", ["cat"], keywords=lambda: ["holiday", "up/down"])
    after = set_labels(plain, ["cat", "dog"], TREE)
    assert listed(after, TAGS_LIST) == ["holiday", "up\\down", "cat", "animal/pet/dog"]
    # What is taken out of ours leaves those of others.
    assert listed(set_labels(after, [], TREE), TAGS_LIST) == ["holiday", "up\\down"]


@pytest.mark.parametrize(("then", "now"), [({}, TREE), (TREE, {}), (TREE, {"dog": "wolf"})])
def test_labels_leave_trees_though_the_hierarchy_has_changed(
    then: dict[str, str], now: dict[str, str]
) -> None:
    before = set_labels(DIGIKAM.encode(), ["dog"], then)
    assert any("dog" in name for name in listed(before, TAGS_LIST))
    after = set_labels(before, ["cat"], now)
    assert not any("dog" in name for name in [*listed(after), *listed(after, TAGS_LIST)])
    assert "People/Anna" in listed(after, TAGS_LIST)


def test_a_hierarchy_that_comes_later() -> None:
    """A label that a person has taken out stays out."""
    before = set_labels(b"", ["dog", "animal"])
    edited = before.replace(b"<rdf:li>animal</rdf:li>", b"", 1)
    after = set_labels(edited, ["dog", "animal"], TREE)
    assert listed(after) == ["dog"]
    assert listed(after, HIERARCHICAL) == ["animal|pet|dog"]


def test_separators_in_names_make_no_levels() -> None:
    content = set_labels(b"", ["dog/wolf", "on|off"], {"dog/wolf": "pets", "on|off": "state"})
    assert listed(content) == ["dog/wolf", "on|off"]
    assert listed(content, TAGS_LIST) == ["pets/dog\\wolf", "state/on|off"]
    assert listed(content, HIERARCHICAL) == ["pets|dog/wolf"]


def test_labels_of_ours_and_of_others_photos_are_no_ones_keywords(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(photo)
    XmpSidecars(naming="photo.xmp").write(photo, ["cat"])
    XmpSidecars().write(photo, ["dog"])
    assert listed((tmp_path / "a.jpg.xmp").read_bytes()) == ["dog"]
    for name in ("b.jpg", "b.png"):  # whose is b.xmp?
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / "b.xmp").write_text(DIGIKAM)
    XmpSidecars().write(tmp_path / "b.jpg", ["dog"])
    assert listed((tmp_path / "b.jpg.xmp").read_bytes()) == ["dog"]


def test_a_word_in_a_caption_is_no_keyword(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(photo, xmp=LIGHTROOM.encode())
    caption = DIGIKAM.replace("<r:li>Anna</r:li>", "").replace("dc:subject", "dc:description")
    caption = caption.replace("<r:Bag>", "<r:Bag><r:li>main subject: church</r:li>")
    (tmp_path / "a.jpg.xmp").write_text(caption)
    assert XmpSidecars().write(photo, ["sky"]) == ""
    assert listed((tmp_path / "a.jpg.xmp").read_bytes()) == ["holiday", "sea", "sky"]


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    photo = tmp_path / f"{'x' * 250}.jpg"
    Image.new("RGB", (8, 8)).save(photo)
    assert XmpSidecars(naming="photo.xmp").write(photo, ["sky"]) == ""
    assert listed(photo.with_suffix(".xmp").read_bytes()) == ["sky"]


def test_a_new_file_does_not_hide_keywords_that_are_elsewhere(tmp_path: Path) -> None:
    embedded, beside = tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.new("RGB", (8, 8)).save(embedded, xmp=LIGHTROOM.encode())
    Image.new("RGB", (8, 8)).save(beside)
    (tmp_path / "b.xmp").write_text(DIGIKAM)
    expected = {embedded: ["holiday", "sea"], beside: ["Anna"]}
    for photo, keywords in expected.items():
        assert XmpSidecars().write(photo, ["sea", "sky"]) == ""
        found = keywords_of(photo, Siblings())[0]
        assert found == list(dict.fromkeys([*keywords, "sea", "sky"]))
        assert XmpSidecars().write(photo, []) == ""  # a person's own stay
        assert keywords_of(photo, Siblings())[0] == keywords
    rated = tmp_path / "d.jpg"  # beside it, a file with other things than keywords
    Image.new("RGB", (8, 8)).save(rated, xmp=LIGHTROOM.encode())
    empty = EMPTY.decode().replace(
        "/>", ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="3"/>'
    )
    for name in ("d.jpg.xmp", "d.xmp"):
        (tmp_path / name).write_text(empty)
        assert XmpSidecars().write(rated, ["sky"]) == ""
        assert keywords_of(rated, Siblings())[0] == ["holiday", "sea", "sky"]
        (tmp_path / "d.jpg.xmp").unlink()
    capital = tmp_path / "e.jpg"
    Image.new("RGB", (8, 8)).save(capital)
    (tmp_path / "e.XMP").write_text(DIGIKAM)
    assert XmpSidecars().write(capital, ["sky"]) == ""
    assert keywords_of(capital, Siblings())[0] == ["Anna", "sky"]
    damaged = tmp_path / "c.jpg"
    Image.new("RGB", (8, 8)).save(damaged)
    (tmp_path / "c.xmp").write_text("no XMP")
    assert XmpSidecars().write(damaged, ["sky"]) == ""
    assert listed((tmp_path / "c.jpg.xmp").read_bytes()) == ["sky"]
