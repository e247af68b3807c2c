"""A data set to be looked at: some of its pictures on a sheet, and its statistics as one HTML file.

The page has no script, fetches nothing and escapes every word of the data set.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..io.atomic import atomic_path, write_whole
from ..io.image import COLUMNS, contact_sheet, encode_image
from ..io.picture_file import Unreadable, decoded
from .cache_folder import evenly_spaced
from .several import Repeated, SeveralShards
from .shards import Shards
from .stats import AREA_AT, BINS, MOST_TOKENS, PIECES_AT, SMALLEST_PIECE, CountTokens, find_splits, statistics

PICTURES = 24  # on a sheet, spread over the data set
MARKED = 8  # more of those that something is said of, before them
QUALITY = 88  # of the JPEG
WIDTH, HEIGHT, FOOT = 262, 110, 18  # pixels of a bar chart, and below it
PAGE_COLUMNS = 6  # of the sheet, whose words are to be read on a screen
MOST_BARS = 10  # of counted pieces; more are one bar
MOST_ROWS = 25  # of a table
DROPPED = "dropped.jpg"  # a build's sheet of what it dropped
WIDEST = 2600  # pixels of a sheet in the page
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #26262a; background: #faf9f6; margin: 2rem auto; max-width: 1180px;
  padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .2rem } \
p { margin: .2rem 0 .8rem; color: #66645f }
.row { display: flex; flex-wrap: wrap; gap: 1.4rem } figure { margin: 0; width: 262px } \
figcaption { color: #26262a; font-size: 14px }
figcaption span { color: #78766f } svg { display: block } svg text { font-size: 11px; fill: #78766f }
rect { fill: #0072b2 } rect.many { fill: #d55e00 } line { stroke: #dddad2 }
table { border-collapse: collapse; margin: .3rem 0 } \
td, th { padding: .15rem .9rem .15rem 0; text-align: right; font-weight: 400 }
th { color: #78766f } td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; max-width: 34rem }
tr + tr td { border-top: 1px solid #e6e3db } .numbers { font-size: 1.1rem; color: #26262a } \
img { width: min(96vw, 1720px); position: relative; left: 50%; transform: translateX(-50%) }
"""
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>
"""


def write_report(folder: Path, out: Path, count_tokens: CountTokens | None = None, workers: int = 0) -> dict[str, Any]:
    """Count a data set, write the page `out` and beside it the numbers as .json; returns them.

    The same data set gives the same bytes. Raises as `statistics`, ValueError unless `out` ends in .html, OSError.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the report is a page and its name ends in .html, got {out.name}")
    found = statistics(folder, count_tokens, workers)
    shards = SeveralShards([Repeated(path) for path in find_splits(folder).values()])
    dropped = _sheet_of_dropped(folder / DROPPED)
    text = render_page(folder.resolve().name or "data set", found, sheet_of(shards, {}, columns=PAGE_COLUMNS), dropped)
    write_whole(out.with_suffix(".json"), json.dumps(found, indent=2) + "\n")
    write_whole(out, text.encode(errors="replace"))
    return found


def render_page(title: str, found: Mapping[str, Any], kept: Image.Image, dropped: Image.Image | None = None) -> str:
    """What `statistics` gives as a page. kept, dropped: sheets of pictures."""
    parts = [
        HEAD.format(title=escape(title), style=STYLE),
        f"<h1>{escape(title)}</h1><p class=numbers>{_numbers(found)}</p>",
        "<h2>How much of the picture the foreground covers</h2>"
        "<p>Share of pixels whose mask is above a threshold; bars: pictures.</p>",
        _row([_areas(found["mask_area"][str(at)], at) for at in AREA_AT]),
        "<h2>Pieces of the foreground</h2><p>Connected pieces of the mask, 8 neighbours a pixel, without those under "
        f"{SMALLEST_PIECE} pixels of a picture of 512 x 512 (as much of another size).</p>",
        _row([_pieces(found["mask_pieces"][str(at)], at) for at in PIECES_AT]),
        *_prompts(found),
        *_scores(found["scores"]),
        _table("Sources", "where pictures come from", found["sources"]),
        _table("Licences", "licence", found["licences"]),
        _table("Sizes", "width x height", found["sizes"]),
        "<h2>Pictures</h2><p>Spread over the data set.</p>" + _image(kept, "some of the pictures"),
        _table("Dropped", "by", found.get("dropped", {})),
        "" if dropped is None else "<h2>Dropped pictures</h2>" + _image(dropped, "some of those that were dropped"),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _numbers(found: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{count:,} {escape(name)}" for name, count in found["splits"].items())
    too_long = found.get("tokens", {}).get("too_long", 0)
    long = f"; {too_long:,} with captions of more than {MOST_TOKENS} tokens" if too_long else ""
    return f"{found['pictures']:,} pictures{f' ({splits})' if splits else ''}{long}"


def _row(figures: Sequence[str]) -> str:
    return f"<div class=row>{''.join(figures)}</div>"


def _areas(histogram: Mapping[str, Any], at: float) -> str:
    note = f"mean {histogram['mean']:.1%}"
    return _bars(histogram["counts"], {0: "0", BINS // 2: "1/2", BINS: "all"}, f"mask &gt; {at:g}", note)


def _pieces(counts: Mapping[str, int], at: float) -> str:
    """A bar for each number of pieces, the last one for all larger ones."""
    numbers = {int(number): count for number, count in counts.items()}
    many = sum(count for number, count in numbers.items() if number >= MOST_BARS)
    bars = [*(numbers.get(number, 0) for number in range(MOST_BARS)), *([many] if many else [])]
    names = {i + 0.5: str(i) for i in range(MOST_BARS)} | ({MOST_BARS + 0.5: f"{MOST_BARS}+"} if many else {})
    alone = numbers.get(1, 0) / max(1, sum(numbers.values()))
    return _bars(bars, names, f"mask &gt; {at:g}", f"one: {alone:.1%}")


def _prompts(found: Mapping[str, Any]) -> list[str]:
    """Lengths of captions as a table and as a chart."""
    kinds = {"words": "words", "tokens": "CLIP tokens, start and end among them"}
    rows = {name: found[kind] for kind, name in kinds.items() if kind in found}
    columns = next(iter(rows.values()))["percentiles"]
    head = "".join(f"<th>{p} %</th>" for p in columns) + "<th>longest</th><th>mean</th>"
    body = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{n:,}</td>' for n in row['percentiles'].values())}"
        f"<td>{row['max']:,}</td><td>{row['mean']:.1f}</td></tr>"
        for name, row in rows.items()
    )
    charts = [_lengths(row["counts"], name.partition(",")[0]) for name, row in rows.items()]
    return ["<h2>Length of captions</h2>", f"<table><tr><th></th>{head}</tr>{body}</table>", _row(charts)]


def _lengths(counts: Mapping[str, int], name: str) -> str:
    """Counts of whole numbers in at most BINS bars of equal width; those beyond the 99.5th per cent in the last."""
    numbers = {int(number): count for number, count in counts.items()}
    total, seen, most = sum(numbers.values()), 0, 0
    for most in sorted(numbers):
        seen += numbers[most]
        if seen >= 0.995 * total:
            break
    step = -(-(most + 1) // BINS)
    bars = [0] * -(-(most + 1) // step)
    for number, count in numbers.items():
        bars[min(len(bars) - 1, number // step)] += count
    names: dict[float, str] = {i: f"{i * step}" for i in (0, len(bars) // 2)}
    names[len(bars)] = f"{max(numbers)}"
    return _bars(bars, names, escape(name), "")


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not scores:
        return []
    figures = [
        _bars(score["counts"], {0: "0", BINS: "1"}, escape(name), f"mean {score['mean']:.3f}")
        for name, score in scores.items()
    ]
    return ["<h2>Scores</h2><p>1: surely good.</p>", _row(figures)]


def _table(title: str, what: str, counts: Mapping[str, int]) -> str:
    """Counted names, the commonest."""
    if not counts:
        return ""
    shown = list(counts.items())[:MOST_ROWS]
    rest = sum(counts.values()) - sum(count for _, count in shown)
    rows = "".join(f"<tr><td>{escape(name[:500])}</td><td>{count:,}</td></tr>" for name, count in shown)
    more = f"<tr><td>{len(counts) - len(shown):,} more</td><td>{rest:,}</td></tr>" if rest else ""
    return f"<h2>{title}</h2><table><tr><th>{what}</th><th>pictures</th></tr>{rows}{more}</table>"


def _bars(counts: Sequence[int], names: Mapping[float, str], title: str, note: str) -> str:
    """A bar chart as SVG. names: what stands below the axis, by place in bars from the left."""
    most, width = max(1, *counts), WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * width + 0.5:.1f}" y="{HEIGHT * (1 - count / most):.1f}" width="{width - 1:.1f}" '
        f'height="{HEIGHT * count / most:.1f}"><title>{count:,}</title></rect>'
        for i, count in enumerate(counts)
        if count
    )
    texts = "".join(
        f'<text x="{place * width:.1f}" y="{HEIGHT + 14}" text-anchor="{_anchor(place, len(counts))}">{name}</text>'
        for place, name in names.items()
    )
    axis = f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
    return (
        f"<figure><figcaption>{title} <span>{note}{', ' if note else ''}highest {most:,}</span></figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT + FOOT}" viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img">'
        f"{axis}{bars}{texts}</svg></figure>"
    )


def _anchor(place: float, count: int) -> str:
    return "start" if place == 0 else "end" if place == count else "middle"


def _image(sheet: Image.Image, alt: str) -> str:
    """A picture inside the page."""
    shown = sheet.copy()
    shown.thumbnail((WIDEST, 100 * WIDEST))
    data = base64.b64encode(encode_image(shown, "JPEG", quality=QUALITY)).decode()
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'


def _sheet_of_dropped(path: Path) -> Image.Image | None:
    """The sheet that a build left; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        with decoded(path, formats=("JPEG",)) as sheet:
            return sheet.convert("RGB")
    except Unreadable:
        return None


# ---- the sheet


def write_sheet(path: Path, shards: Path, marked: Mapping[int, str]) -> None:
    """Draw some pictures of a folder of shards. marked: what is wrong with some, by their numbers; these come first.

    The same shards give the same bytes. Raises OSError for a full disk.
    """
    save_sheet(sheet_of(Shards(shards), marked), path)


def sheet_of(shards: Shards | SeveralShards, marked: Mapping[int, str], columns: int = COLUMNS) -> Image.Image:
    first = sorted(marked)[:MARKED]
    numbers = [*first, *(number for number in evenly_spaced(len(shards), PICTURES) if number not in first)]
    titles = [f"! {marked[number]}" if number in first else shards.metadata(number)["caption"] for number in numbers]
    return contact_sheet((shards[number].layers for number in numbers), titles, columns=columns)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as JPEG, whole or not at all."""
    with atomic_path(path) as partial:
        sheet.save(partial, "JPEG", quality=QUALITY)
