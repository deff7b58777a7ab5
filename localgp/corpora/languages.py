"""Language codes: people write ``de``, ``deu``, ``ger``, ``DE`` or ``de-AT``, and every model has codes of its own.

Inside, a language is named as in BCP 47: by two letters (ISO 639-1) where it has them, else by three (ISO 639-3).
`canonical` comes from what a person wrote to that, `find` to the code of a model. The table is our own: no package in
the dependencies has one, and ISO 639-1 has been closed since 2003.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from localgp.errors import ConfigError

# Two letters to three. First the languages of OWSM-v3.1's vocabulary that have two. Where it holds a macrolanguage and
# one of its members (zho and cmn, swa and swh), the two-letter code names the macrolanguage.
# fmt: off
OWSM = {
    "ab": "abk", "af": "afr", "am": "amh", "ar": "ara", "as": "asm", "az": "aze", "ba": "bak", "be": "bel",
    "bg": "bul", "bn": "ben", "br": "bre", "bs": "bos", "ca": "cat", "cs": "ces", "cv": "chv", "cy": "cym",
    "da": "dan", "de": "deu", "dv": "div", "el": "ell", "en": "eng", "eo": "epo", "es": "spa", "et": "est",
    "eu": "eus", "fa": "fas", "ff": "ful", "fi": "fin", "fr": "fra", "ga": "gle", "gl": "glg", "gn": "grn",
    "gu": "guj", "ha": "hau", "he": "heb", "hi": "hin", "hr": "hrv", "ht": "hat", "hu": "hun", "hy": "hye",
    "ia": "ina", "id": "ind", "ig": "ibo", "is": "isl", "it": "ita", "ja": "jpn", "jv": "jav", "ka": "kat",
    "kk": "kaz", "km": "khm", "kn": "kan", "ko": "kor", "ky": "kir", "lb": "ltz", "lg": "lug", "ln": "lin",
    "lo": "lao", "lt": "lit", "lv": "lav", "mi": "mri", "mk": "mkd", "ml": "mal", "mn": "mon", "mr": "mar",
    "mt": "mlt", "my": "mya", "nb": "nob", "ne": "nep", "nl": "nld", "nn": "nno", "ny": "nya", "oc": "oci",
    "om": "orm", "or": "ori", "pa": "pan", "pl": "pol", "ps": "pus", "pt": "por", "rm": "roh", "ro": "ron",
    "ru": "rus", "rw": "kin", "sc": "srd", "sd": "snd", "si": "sin", "sk": "slk", "sl": "slv", "sn": "sna",
    "so": "som", "sr": "srp", "st": "sot", "su": "sun", "sv": "swe", "sw": "swa", "ta": "tam", "te": "tel",
    "tg": "tgk", "th": "tha", "ti": "tir", "tk": "tuk", "tl": "tgl", "tn": "tsn", "tr": "tur", "tt": "tat",
    "tw": "twi", "ug": "uig", "uk": "ukr", "ur": "urd", "uz": "uzb", "vi": "vie", "wo": "wol", "xh": "xho",
    "yo": "yor", "zh": "zho", "zu": "zul",
}
ISO_639_3 = OWSM | {
    "aa": "aar", "ae": "ave", "ak": "aka", "an": "arg", "av": "ava", "ay": "aym", "bi": "bis", "bm": "bam", "bo": "bod",
    "ce": "che", "ch": "cha", "co": "cos", "cr": "cre", "cu": "chu", "dz": "dzo", "ee": "ewe", "fj": "fij", "fo": "fao",
    "fy": "fry", "gd": "gla", "gv": "glv", "ho": "hmo", "hz": "her", "ie": "ile", "ii": "iii", "ik": "ipk", "io": "ido",
    "iu": "iku", "kg": "kon", "ki": "kik", "kj": "kua", "kl": "kal", "kr": "kau", "ks": "kas", "ku": "kur", "kv": "kom",
    "kw": "cor", "la": "lat", "li": "lim", "lu": "lub", "mg": "mlg", "mh": "mah", "ms": "msa", "na": "nau", "nd": "nde",
    "ng": "ndo", "no": "nor", "nr": "nbl", "nv": "nav", "oj": "oji", "os": "oss", "pi": "pli", "qu": "que", "rn": "run",
    "sa": "san", "se": "sme", "sg": "sag", "sm": "smo", "sq": "sqi", "ss": "ssw", "to": "ton", "ts": "tso", "ty": "tah",
    "ve": "ven", "vo": "vol", "wa": "wln", "yi": "yid", "za": "zha",
}

# Other codes of the same languages: ISO 639-2/B, and two-letter codes that were withdrawn (Whisper has jw).
_ALIASES = {three: two for two, three in ISO_639_3.items()} | {
    "alb": "sq", "arm": "hy", "baq": "eu", "bur": "my", "chi": "zh", "cze": "cs", "dut": "nl", "fre": "fr", "geo": "ka",
    "ger": "de", "gre": "el", "ice": "is", "mac": "mk", "mao": "mi", "may": "ms", "per": "fa", "rum": "ro", "slo": "sk",
    "tib": "bo", "wel": "cy",
    "in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro",
}

# The largest member of a macrolanguage to it: some models name the one, some the other, and mean the same speech.
_MACRO = {
    "als": "sq", "arb": "ar", "azj": "az", "cmn": "zh", "ekk": "et", "fil": "tl", "khk": "mn", "lvs": "lv", "nb": "no",
    "npi": "ne", "ory": "or", "pes": "fa", "swh": "sw", "uzn": "uz", "ydd": "yi", "zsm": "ms",
}
# fmt: on

EUROPARL_ST = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ro")

_NO_LANGUAGE = (
    "mis",
    "mul",
    "und",
    "zxx",
)  # ISO 639-2's codes for "uncoded", "several", "unknown" and "none"
_TAG = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{3})(?![a-z0-9]))?(?:[-_][a-z0-9]{1,8})*")


def canonical(code: str) -> str:
    """A language as it is named inside; three-letter codes outside of the table are taken to be ISO 639-3's.

    Raises:
        ConfigError: Not a language code.

    Examples:
        >>> [canonical(code) for code in ("fr", "fra", "fre", "FR", "fr-CA", "yue", "zh-yue", "jw")]
        ['fr', 'fr', 'fr', 'fr', 'fr', 'yue', 'yue', 'jv']
    """
    match = _TAG.fullmatch(code.lower()) if isinstance(code, str) else None
    if match:
        known = match[2] or match[1]
        known = _ALIASES.get(known, known)
        if known in ISO_639_3 or (len(known) == 3 and known not in _NO_LANGUAGE):
            return known
    raise ConfigError(
        f"unknown language {code!r}; valid are codes of two letters (ISO 639-1: de) or three (ISO 639-3: deu), "
        "and tags that begin with one (de-AT)"
    )


def is_code(code: str) -> bool:
    """Whether it names a language.

    Examples:
        >>> is_code("de"), is_code("yue"), is_code("pr"), is_code("g2p")
        (True, True, False, False)
    """
    try:
        return bool(canonical(code))
    except ConfigError:
        return False


def name_of(own: str) -> str:
    """A model's own code as it is named inside; itself where it is none of ISO's."""
    try:
        return canonical(own)
    except ConfigError:
        return own


def find(code: str, known: Iterable[str]) -> str | None:
    """The code that a model has for a language; None where it has none.

    Args:
        code: As a person writes it.
        known: The model's codes, in whatever standard.

    Examples:
        >>> find("fre", ["deu", "fra"]), find("yue", ["zh", "yue"]), find("nb", ["no", "nn"]), find("xx", ["deu"])
        ('fra', 'yue', 'no', None)
    """
    return _find(code, tuple(known))


def known(language: str, languages: Iterable[str]) -> str:
    """The code that a model has for a language.

    Raises:
        ConfigError: It has none; the message lists those that it has, in the form that was asked in.
    """
    code = find(language, languages)
    if code is None:
        raise ConfigError(
            f"unknown language {language!r}: this model has {', '.join(like(language, languages))}"
        )
    return code


@lru_cache(maxsize=1000)  # asked for every utterance
def _find(code: str, codes: tuple[str, ...]) -> str | None:
    if code in codes:
        return code
    wanted = name_of(code)
    named = {name_of(own): own for own in reversed(codes)}  # of two with one meaning, the first
    if wanted in named:
        return named[wanted]
    related = {_MACRO.get(name, name): own for name, own in named.items()}
    return related.get(_MACRO.get(wanted, wanted))


def like(code: str, known: Iterable[str]) -> list[str]:
    """A model's languages in the form that a person used, for messages: two letters to those who write two.

    Examples:
        >>> like("xx", ["deu", "fra", "yue"]), like("xxx", ["de", "fr"]), like("", ["deu"])
        (['de', 'fr', 'yue'], ['deu', 'fra'], ['deu'])
    """
    letters = len(re.split("[-_]", code)[0])
    if letters == 2:
        return [name_of(own) for own in known]
    return [ISO_639_3.get(own, own) if letters == 3 else own for own in known]


def to_iso_639_3(code: str) -> str:
    """A language's three letters.

    Raises:
        ConfigError: Not a language code.

    Examples:
        >>> to_iso_639_3("fr"), to_iso_639_3("deu"), to_iso_639_3("de-AT")
        ('fra', 'deu', 'deu')
    """
    name = canonical(code)
    return ISO_639_3.get(name, name)
