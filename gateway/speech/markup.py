"""SSML from outside, rebuilt from the few elements that are known to be harmless.

eSpeak NG's own reader opens any file that an <audio> element names, so it never sees the original.
"""

import re
from xml.etree import ElementTree

from lipserve.errors import InvalidParameter

# element: its attributes, each with what its value may be
_PLAIN = re.compile(r"[A-Za-z0-9 .%+-]{1,32}")
_WORDS = re.compile(r"[^\x00-\x1f]{1,200}")
KNOWN: dict[str, dict[str, re.Pattern[str]]] = {
    "speak": {},
    "p": {},
    "s": {},
    "break": {"time": re.compile(r"(\d{1,4}ms|\d{1,2}(\.\d{1,3})?s)"), "strength": _PLAIN},
    "prosody": {"rate": _PLAIN, "pitch": _PLAIN, "volume": _PLAIN, "range": _PLAIN},
    "emphasis": {"level": _PLAIN},
    "say-as": {"interpret-as": _PLAIN, "format": _PLAIN},
    "sub": {"alias": _WORDS},
}
DROPPED = {"version", "lang"}  # of <speak>: says nothing that the voice does not
MAX_DEPTH = 16


def rebuilt(markup: str) -> str:
    """One <speak> element of known elements and attributes. Raises InvalidParameter, naming what is not."""
    text = markup.strip()
    if not text.startswith(("<speak", "<?xml")):
        text = f"<speak>{text}</speak>"
    if "<!" in text:
        raise _refused("comments, CDATA and document types are not taken")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as exc:
        raise _refused(str(exc)) from exc
    if _name(root.tag) != "speak":
        raise _refused("it must be one <speak> element")
    return ElementTree.tostring(_copy(root, 0), encoding="unicode")


def _copy(given: ElementTree.Element, depth: int) -> ElementTree.Element:
    tag = _name(given.tag)
    if tag not in KNOWN or depth > MAX_DEPTH:
        raise _refused(f"there is no <{tag[:40]}>" if tag not in KNOWN else "its elements are nested too deep")
    made = ElementTree.Element(tag)
    for attribute, value in given.attrib.items():
        name = _name(attribute)
        if tag == "speak" and name in DROPPED:
            continue
        allowed = KNOWN[tag].get(name)
        if allowed is None or not allowed.fullmatch(value):
            raise _refused(f"<{tag}> takes no {name[:40]}={value[:40]!r}")
        made.set(name, value)
    made.text, made.tail = given.text, given.tail if depth else None
    for child in given:
        made.append(_copy(child, depth + 1))
    return made


def _name(tag: str) -> str:
    """Without its namespace."""
    return tag.rpartition("}")[2]


def _refused(why: str) -> InvalidParameter:
    return InvalidParameter(f"The SSML cannot be used: {why}.", f"Use only {', '.join(f'<{tag}>' for tag in KNOWN)}.")
