"""Texts that any terminal can print."""

from unicodedata import category

from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.printable import excerpt, printable


@given(st.text(st.characters()))
def test_only_what_can_be_printed_is_left_and_the_rest_can_be_read_back(text):
    out = printable(text)
    assert not [c for c in out if category(c)[0] == "C" or category(c) in ("Zl", "Zp")]
    assert out.replace("\\", "") == text.replace("\\", "") or any(category(c)[0] in "CZ" for c in text)


def test_attacks_on_a_terminal():
    assert printable("\x1b]0;title\x07\x9b2J\r\n\u202e\u2066\ufeff") == (
        "\\x1b]0;title\\x07\\x9b2J\\r\\n\\u202e\\u2066\\ufeff"
    )
    assert printable("größe 肝 \xa0\u3000") == "größe 肝 \xa0\u3000"


@given(st.text(st.characters()), st.integers(2, 50))
def test_an_excerpt_is_short_and_can_be_printed(text, longest):
    out = excerpt(text, longest)
    assert len(out) <= longest + 3
    assert out == printable(out)
    assert out == printable(text) or out.startswith(printable(text)[: longest // 2])
