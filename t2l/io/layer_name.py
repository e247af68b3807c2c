"""Names of layers that a file stores as bytes without saying in which character set."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

# What names are made of: the layers, groups and copies that editors name by themselves, and frequent characters.
_JAPANESE = "背景前景空海山人物線画塗色影光髪目口顔肌服文字下書主線効果白黒赤青上中全体新規調整平面合成"
_CHINESE = "图层背景前景副本组蒙版文字人物颜色线稿形状调整的一是在不了有和大小上中下天空山水光影白黑红新建头发眼睛衣服底树猫狗花手脸草云雪月日星"
_TAIWANESE = "圖層背景前景副本群組遮罩文字人物顏色線稿形狀調整的一是在不了有和大小上中下天空山水光影白黑紅新建頭髮眼睛衣服底樹貓狗花手臉草雲雪月日星"
_KOREAN = "레이어배경전경복사그룹마스크글자문인물색상선화채빛그림자머리눈얼굴옷하늘산바다흰검정빨강파랑가나다라사아이기지의는을를도"
_VOWELS = "\u0430\u0435\u0451\u0438\u043e\u0443\u044b\u044d\u044e\u044f"  # of Russian
_LATIN_SIGNS = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022\u00a9\u00ae\u2122\u00b0\u00ab\u00bb\u00bf\u00a1\u00b7"


@dataclass(frozen=True)
class Names:
    """Decoded names."""

    texts: tuple[str, ...]
    guess: str | None  # the character set that was guessed; None where there was nothing to guess


def decode_names(names: Sequence[bytes]) -> Names:
    """Names of one file as text: ASCII and UTF-8 as they are, all others in the one character set that fits them best.

    That is Mac Roman, which the format means, unless they make little sense in it and more in another.
    """
    open_names = [name for name in names if _utf8(name) is None]
    best = max(_ENCODINGS, key=lambda encoding: sum(_score(name, encoding) for name in open_names))
    texts = tuple(_utf8(name) or name.decode(best, "replace") for name in names)
    return Names(texts, _ENCODINGS[best][0] if open_names and best != "mac_roman" else None)


def _utf8(name: bytes) -> str | None:
    """The name, if it is UTF-8 that makes sense; of one as long as can be the last character may be cut off."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or len(name) < 31:
            return None
        text = name[: error.start].decode("utf-8")
    padded = f" {text} "
    return text if all(_fits(*padded[i - 1 : i + 2]) for i in range(1, len(padded) - 1)) else None


def _fits(before: str, c: str, after: str) -> bool:
    """Whether a character makes sense; those of two bytes may be two characters of another set."""
    if c < "\x80" or c >= "\u0800":
        return True
    script = unicodedata.name(c, "nothing").split()[0]
    foreign = c.isalpha() and script != "LATIN" and any(_is_ascii_letter(x) for x in (before, after))
    return unicodedata.category(c)[0] != "C" and not foreign


def _score(name: bytes, encoding: str) -> float:
    """How likely a name is in a character set, per byte; about 1 for a plain name."""
    try:
        text = name.decode(encoding)
    except UnicodeDecodeError:
        return -10.0
    weight = _ENCODINGS[encoding][1]
    padded = f" {text} "
    return sum(weight(*padded[i - 1 : i + 2]) for i in range(1, len(padded) - 1)) / len(name)


def _ascii(c: str) -> float:
    return 1.0 if c.isalnum() or c in " _-.#()" else 0.4


def _is_ascii_letter(c: str) -> bool:
    return c.isascii() and c.isalpha()


def _latin(before: str, c: str, after: str, accent: float) -> float:
    """Letters with accents among letters of their case, and the signs of printed text outside of words."""
    if c.isascii():
        return _ascii(c)
    in_word = before.isalpha() and after.isalpha()
    if c in _LATIN_SIGNS:
        return 0.6 if c in "\u2019\u00b7" or not in_word else -1.0
    if not unicodedata.name(c, "").startswith("LATIN") or c in "\u0192\u0131\u00aa\u00ba":
        return -1.0
    return -1.0 if c.isupper() and before.islower() else accent


def _cyrillic(before: str, c: str, after: str, letter: float, vowel: float) -> float:
    """Russian letters among their own."""
    if c.isascii():
        return _ascii(c)
    if not ("\u0410" <= c <= "\u044f" or c in "\u0401\u0451"):
        return -0.5 if c.isalpha() else 0.0
    mixed = _is_ascii_letter(before) + _is_ascii_letter(after) + (c.isupper() and before.islower())
    return (vowel if c.lower() in _VOWELS else letter) - 2.0 * mixed


def _east_asian(before: str, c: str, after: str, encoding: str, common: str) -> float:
    """Characters by how often names have them, not mixed with Latin letters."""
    if c.isascii():
        return _ascii(c)
    mixed = 2.0 * (_is_ascii_letter(before) + _is_ascii_letter(after))
    return (3.0 if c in common else _rank(c.encode(encoding), encoding)) - mixed


def _rank(code: bytes, encoding: str) -> float:
    """The weight of a character by its place in the standard: frequent ones come first."""
    lead = code[0]
    if encoding == "cp932":
        if len(code) == 1:
            return 0.6  # katakana of half the width
        kana = b"\x82\x9f" <= code <= b"\x83\x96" or code == b"\x81\x5b"
        return 2.6 if kana else 1.9 if 0x88 <= lead <= 0x97 else 1.5 if lead in (0x81, 0x82) else 0.6
    if encoding == "euc_kr":
        return 2.0 if 0xB0 <= lead <= 0xC8 else 1.5 if lead in (0xA1, 0xA3) else 0.6
    if encoding == "big5":
        return 1.75 if 0xA4 <= lead <= 0xC6 else 1.5 if lead in (0xA1, 0xA2, 0xA3) else 0.6
    return 1.8 if 0xB0 <= lead <= 0xD7 and code[1] >= 0xA1 else 1.5 if lead in (0xA1, 0xA3) else 0.5


# By Python's name: the one that people know, and a character's weight between its neighbours. The first of equals wins.
_ENCODINGS = {
    "mac_roman": ("Mac Roman", partial(_latin, accent=0.8)),
    "cp1252": ("Windows-1252", partial(_latin, accent=0.75)),
    "cp932": ("Shift-JIS", partial(_east_asian, encoding="cp932", common=_JAPANESE)),
    "gbk": ("GBK", partial(_east_asian, encoding="gbk", common=_CHINESE)),
    "euc_kr": ("EUC-KR", partial(_east_asian, encoding="euc_kr", common=_KOREAN)),
    "big5": ("Big5", partial(_east_asian, encoding="big5", common=_TAIWANESE)),
    "cp1251": ("Windows-1251", partial(_cyrillic, letter=0.9, vowel=1.15)),
    "mac_cyrillic": ("Mac Cyrillic", partial(_cyrillic, letter=0.79, vowel=0.79)),
}
