"""Language codes: two letters (ISO 639-1) in corpora and task names, three (ISO 639-3) in OWSM's symbols."""

from __future__ import annotations

from localgp.errors import ConfigError

# The languages of OWSM-v3.1's vocabulary that have a two-letter code. Where it holds a macrolanguage and one of
# its members (zho and cmn, swa and swh), the two-letter code names the macrolanguage.
# fmt: off
ISO_639_3 = {
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
# fmt: on

EUROPARL_ST = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ro")


def to_iso_639_3(code: str) -> str:
    """``de`` to ``deu``; a three-letter code of the table is returned as it is.

    Raises:
        ConfigError: Not a language of OWSM's with a two-letter code.

    Example:
        >>> to_iso_639_3("fr"), to_iso_639_3("deu")
        ('fra', 'deu')
    """
    if code in ISO_639_3:
        return ISO_639_3[code]
    if code in ISO_639_3.values():
        return code
    raise ConfigError(
        f"unknown language {code!r}: valid are the two-letter codes {', '.join(sorted(ISO_639_3))}"
    )
