"""Numbers from two to ninety-nine in words."""
# ruff: noqa: SIM905 (word lists read better as text)

from __future__ import annotations

_DE = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf".split()
_DE_TENS = "null zehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
_FR_UNITS = "zéro un deux trois quatre cinq six sept huit neuf".split()
_FR_TEENS = "dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf".split()
_FR = [*_FR_UNITS, *_FR_TEENS]
_FR_TENS = {20: "vingt", 30: "trente", 40: "quarante", 50: "cinquante", 60: "soixante"}
_IT_UNITS = "zero uno due tre quattro cinque sei sette otto nove".split()
_IT_TEENS = "dieci undici dodici tredici quattordici quindici sedici diciassette diciotto diciannove".split()
_IT = [*_IT_UNITS, *_IT_TEENS]
_IT_TENS = "zero dieci venti trenta quaranta cinquanta sessanta settanta ottanta novanta".split()


def spell(number: int, language: str) -> str:
    """A number in words.

    >>> spell(81, "fr"), spell(23, "it"), spell(17, "de")
    ('quatre-vingt-un', 'ventitré', 'siebzehn')
    """
    return {"de": _german, "fr": _french, "it": _italian}[language](number)


def _german(number: int) -> str:
    if number <= 12:
        return _DE[number]
    tens, units = divmod(number, 10)
    if number < 20:
        return {6: "sech", 7: "sieb"}.get(units, _DE[units]) + "zehn"
    if not units:
        return _DE_TENS[tens]
    return ("ein" if units == 1 else _DE[units]) + "und" + _DE_TENS[tens]


def _french(number: int) -> str:
    if number < 20:
        return _FR[number]
    base = number // 20 * 20 if number >= 60 else number // 10 * 10  # 70 is sixty-ten, 90 four-twenty-ten
    rest = number - base
    if base == 80:
        return "quatre-vingts" if not rest else f"quatre-vingt-{_FR[rest]}"
    if not rest:
        return _FR_TENS[base]
    if rest in (1, 11):
        return f"{_FR_TENS[base]} et {_FR[rest]}"
    return f"{_FR_TENS[base]}-{_FR[rest]}"


def _italian(number: int) -> str:
    if number < 20:
        return _IT[number]
    tens, units = divmod(number, 10)
    if not units:
        return _IT_TENS[tens]
    stem = _IT_TENS[tens][:-1] if units in (1, 8) else _IT_TENS[tens]
    return stem + ("tré" if units == 3 else _IT[units])
