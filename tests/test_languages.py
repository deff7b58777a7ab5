"""Language codes as people and models write them."""

from __future__ import annotations

import pytest

from localgp.corpora.languages import ISO_639_3, canonical, find, like, to_iso_639_3
from localgp.errors import ConfigError

# fmt: off
_CODES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
# fmt: on
WHISPER = _CODES.split()


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("fr", ["fr", "FR", "fra", "fre", "Fra", "fr-FR", "fr_CA", "fre-FR"]),
        ("de", ["de", "deu", "ger", "de-AT", "de-Latn-CH-1996"]),
        ("zh", ["zh", "zho", "chi", "zh-Hans", "zh-TW"]),
        ("yue", ["yue", "zh-yue", "yue-HK"]),
        ("cmn", ["cmn", "zh-cmn-Hans"]),
        ("he", ["he", "iw", "heb"]),
        ("jv", ["jv", "jw", "jav"]),
        ("haw", ["haw"]),
    ],
)
def test_every_form_of_a_language_is_the_same(name, written):
    assert {canonical(code) for code in written} == {name}
    assert {to_iso_639_3(code) for code in written} == {ISO_639_3.get(name, name)}


@pytest.mark.parametrize(
    "code", ["", "x", "xx", "german", "und", "mul", "de1", "1de", "-de", "de DE", None, ["de"], 3]
)
def test_what_is_no_language_is_refused(code):
    with pytest.raises(ConfigError, match="unknown language .*valid are codes of two letters"):
        canonical(code)


def test_whispers_languages_are_found_in_every_form():
    assert len(set(WHISPER)) == 100
    for own in WHISPER:
        forms = {own, own.upper(), canonical(own), to_iso_639_3(own), f"{own}-001"}
        assert {find(form, WHISPER) for form in forms} == {own}
        assert find(own, [to_iso_639_3(code) for code in WHISPER]) == to_iso_639_3(own)


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("zh", ["cmn", "zho"], "zho"),
        ("cmn", ["zho", "cmn"], "cmn"),
        ("zh", ["yue", "cmn"], "cmn"),
        ("yue", ["zh"], None),
        ("nob", ["no", "nn"], "no"),
        ("no", ["nob", "nno"], "nob"),
        ("nn", ["no"], None),
        ("fil", ["tl"], "tl"),
        ("own", ["own", "de"], "own"),
        ("xx-own", ["xx-own"], "xx-own"),  # a model may name languages as it likes
        ("x", ["de"], None),
    ],
)
def test_the_code_of_a_model(code, known, found):
    assert find(code, known) == found


def test_messages_are_in_the_readers_form():
    assert like("xx-YY", ["deu", "haw"]) == ["de", "haw"]
    assert like("xxx", ["de", "haw"]) == ["deu", "haw"]
