"""What people call the files of a layered picture, and where they write its caption: every way finds the same
picture.
"""

import json
import unicodedata

import pytest

from t2l.data.folder import find_sources
from tests.data.test_pack import packed, picture, write_set

PARTS = ("foreground", "background", "mask")


def write_files(folder, names, caption="a.txt"):
    """Foreground, background and mask under the given names, and a caption."""
    mask = picture(0, mode="L")
    mask.paste(255, (20, 20, 50, 50))
    for name, content in zip(names, (picture(), picture((10, 90, 200)), mask), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path, {"jpg": "jpeg", "tif": "tiff"}.get(path.suffix[1:].lower(), path.suffix[1:].lower()))
    if caption:
        (folder / caption).parent.mkdir(parents=True, exist_ok=True)
        (folder / caption).write_text("a cup")


def found(folder, **options):
    """The one picture, by its parts, and what is said of the others."""
    (source,), skipped = find_sources(folder, **options)
    assert not skipped
    return source.name, {part: path.relative_to(folder).as_posix() for part, path in source.files.items()}


NAMES = {
    "fg": ("a", "a_fg.png", "a_bg.png", "a_alpha.png"),
    "mixed separators": ("a", "a-foreground.png", "a.bg.png", "a_matte.png"),
    "spaces": ("my cat", "my cat fg.png", "my cat bg.png", "my cat mask.png"),
    "capitals": ("a", "a_FG.PNG", "a_Background.Png", "a_MASK.png"),
    "other kinds": ("a", "a_fg.webp", "a_bg.jpg", "a_mask.tif"),
    "before": ("a", "fg_a.png", "bg_a.png", "mask_a.png"),
    "folders": ("a", "foreground/a.png", "background/a.png", "mask/a.png"),
    "short folders": ("a", "FG/a.png", "bgs/a.jpg", "mattes/a.png"),
    "video matting": ("a", "fgr/a.png", "bgr/a.png", "pha/a.png"),
    "folders in a folder": ("cats/a", "cats/fg/a.png", "cats/bg/a.png", "cats/masks/a.png"),
    "a folder in folders": ("cats/a", "fg/cats/a.png", "bg/cats/a.png", "alpha/cats/a.png"),
    "kohya's repeats": ("10_dogs/a", "10_dogs/a_fg.png", "10_dogs/a_bg.png", "10_dogs/a_mask.png"),
    "twice": ("a", "fg/a_fg.png", "bg/a_bg.png", "mask/a_mask.png"),
    "mask beside": ("a", "foreground/a.png", "background/a.png", "foreground/a_mask.png"),
    "a name like a part": ("mask-girl", "foreground/mask-girl.png", "background/mask-girl.png", "mask/mask-girl.png"),
    "a folder a picture": ("a", "a/foreground.png", "a/background.png", "a/mask.png"),
    "in a folder like a part": ("background/a", "background/a.fg.png", "background/a.bg.png", "background/a.mask.png"),
    "dots": ("a.v2", "a.v2.foreground.png", "a.v2.background.png", "a.v2.mask.png"),
    "a script": ("ネコ", "fg/ネコ.png", "bg/ネコ.png", "mask/ネコ.png"),
    "a line break": ("a\nb", "a\nb_fg.png", "a\nb_bg.png", "a\nb_mask.png"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_parts_are_found_by_their_names_and_folders(kind, tmp_path):
    key, *names = NAMES[kind]
    write_files(tmp_path, names, f"{key}.txt")
    assert found(tmp_path) == (key, dict(zip(PARTS, names, strict=True)))


def test_a_name_that_a_mac_wrote_decomposed_belongs_to_the_composed_one(tmp_path):
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_files(tmp_path, (f"{one}_fg.png", f"{other}_bg.png", f"{one}_mask.png"), f"{other}.txt")
    assert len(found(tmp_path)[1]) == 3


def test_a_thousand_pictures_in_folders_of_parts_keep_apart(tmp_path):
    for number in range(20):
        for folder in ("x", "x/y"):
            write_files(
                tmp_path, [f"{folder}/{part}/{number}.png" for part in ("fg", "bg", "mask")], f"{folder}/{number}.txt"
            )
    sources, skipped = find_sources(tmp_path)
    assert len(sources) == 40 and not skipped and {len(source.files) for source in sources} == {3}


def test_previews_composites_and_cut_outs_beside_the_parts_are_no_pictures_of_their_own(tmp_path):
    write_files(tmp_path, ("fg/a.png", "bg/a.png", "mask/a.png"))
    for name in ("composite/a.png", "cutouts/a.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    assert found(tmp_path)[0] == "a"


def test_a_part_without_the_others_says_what_is_missing(tmp_path):
    write_files(tmp_path / "in", ("fg/a.png", "fg/b.png", "mask/b.png"))
    for name, missing in {"a": "background", "b": "background"}.items():
        lines = find_sources(tmp_path / "in")[1]
        assert f"{name}: has no {missing}; a layered picture needs foreground, background and a mask" in lines


# ---- captions beside the picture

BESIDE = ["a.txt", "a.caption", "A.TXT".lower(), "a_fg.txt", "a.foreground.txt", "foreground/a.txt", "mask/a.caption"]
BESIDE += ["captions/a.txt", "a_caption.txt", "prompts/a.txt", "foreground/a.png.txt", "a_bg.caption", "a.TXT"]


@pytest.mark.parametrize("name", BESIDE)
def test_a_caption_may_be_named_like_the_picture_or_any_of_its_files(name, tmp_path):
    write_files(tmp_path, ("foreground/a.png", "background/a.png", "mask/a.png"), name)
    (source,), _ = find_sources(tmp_path)
    assert source.texts["caption"] == "a cup"


def test_a_folder_a_picture_holds_its_caption(tmp_path):
    write_files(tmp_path, ("a/fg.png", "a/bg.png", "a/mask.png"), "a/caption.txt")
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


def test_the_caption_of_the_picture_goes_before_those_of_its_parts(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"))
    for name in ("a_fg.txt", "a.caption"):
        (tmp_path / name).write_text("another")
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


@pytest.mark.parametrize(
    "content",
    [
        {"caption": "a cup"},
        {"text": "a cup"},
        {"caption": None, "tags": ["a cup"]},
        {"caption": ["a cup", "a mug"]},
        {"caption": "", "additional_feature": "a cup"},
    ],
)
def test_an_object_beside_the_picture_may_say_its_caption_in_several_ways(content, tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


def test_an_object_that_says_other_things_leaves_the_caption_to_the_text(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"))
    (tmp_path / "a.json").write_text('{"shapes": [], "version": "5.0"}')
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfa cup\r\n", "a cup\r\n".encode("utf-16"), b"\n\n a  cup\r"])
def test_captions_of_windows_editors_are_read(data, tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    (tmp_path / "a.txt").write_bytes(data)
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


# ---- captions in one file for many

LINE = {"file_name": "a_fg.png", "text": "a cup"}
FILES = {
    "jsonl": ("metadata.jsonl", json.dumps(LINE)),
    "jsonl with a mark": ("metadata.jsonl", "\ufeff" + json.dumps(LINE) + "\r\n\r\n"),
    "caption": ("metadata.jsonl", json.dumps({"file_name": "a_mask.png", "caption": "a cup"})),
    "any file": ("metadata.jsonl", json.dumps({"file_name": "a_bg.png", "additional_feature": "a cup"})),
    "the key": ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": "a cup"})),
    "parts": ("metadata.jsonl", json.dumps({"background_file_name": "a_bg.png", "text": "a cup"})),
    "a list": ("metadata.jsonl", json.dumps(LINE | {"text": ["", "a cup", "a mug"]})),
    "llava": (
        "captions.json",
        json.dumps(
            [
                {
                    "image": "a_fg.png",
                    "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a cup"}],
                }
            ]
        ),
    ),
    "windows": ("metadata.jsonl", json.dumps(LINE | {"file_name": ".\\a_fg.png"})),
    "encoded": ("metadata.jsonl", json.dumps(LINE | {"file_name": "%61_fg.png"})),
    "other case": ("metadata.jsonl", json.dumps(LINE | {"file_name": "A_FG.PNG"})),
    "another machine's": ("metadata.jsonl", json.dumps(LINE | {"file_name": "C:\\Users\\me\\data\\a_fg.png"})),
    "csv": ("metadata.csv", "file_name,text\na_fg.png,a cup\n"),
    "csv of excel": ("metadata.csv", "\ufefffile_name;caption\r\na_fg.png;a cup\r\n;\r\n"),
    "csv in quotes": ("metadata.csv", 'caption,file_name\n"a\ncup",a_fg.png\n'),
    "tsv": ("metadata.tsv", "file_name\ttext\na_fg.png\ta cup\n"),
    "capitals": ("Metadata.CSV", "File_Name,Text\na_fg.png,a cup\n"),
    "twice": ("metadata.csv", "file_name,text\na_fg.png,a cup\na_bg.png,a cup\na_fg.png, a  cup\n"),
    "kohya": ("meta_cap.json", json.dumps({"a_fg": {"caption": "a cup", "tags": "cup"}})),
    "kohya's tags": ("meta.json", json.dumps({"/home/me/train/a_fg.png": {"tags": "a cup"}})),
    "plain": ("captions.json", json.dumps({"a": "a cup"})),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("folder", [".", "deep/er"])
def test_a_file_of_captions_is_found_where_it_lies_and_names_any_file(kind, folder, tmp_path):
    write_files(tmp_path / folder, ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    name, text = FILES[kind]
    (tmp_path / folder / name).write_text(text, "utf-8", newline="")
    (source,), skipped = find_sources(tmp_path)
    assert source.texts["caption"] == "a cup" and not skipped


def test_names_are_also_taken_from_the_data_set_s_folder_and_as_absolute_paths(tmp_path):
    write_files(tmp_path / "x", ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    write_files(tmp_path / "y", ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    rows = [{"file_name": str(tmp_path / "x" / "a_fg.png"), "text": "one"}, {"file_name": "y/a_bg.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [source.texts["caption"] for source in find_sources(tmp_path)[0]] == ["one", "two"]


def test_what_stands_beside_a_picture_goes_before_a_file_for_many(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"))
    (tmp_path / "metadata.csv").write_text("file_name,text\na_fg.png,another\n")
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a cup"


BAD_ROWS = {
    "no JSON": ("metadata.jsonl", "{", "line 2 of metadata.jsonl is not JSON"),
    "no name": ("metadata.jsonl", '{"text": "x"}', 'line 2 of metadata.jsonl needs "file_name" and "text"'),
    "no caption": (
        "metadata.jsonl",
        '{"file_name": "b.png"}',
        'b: has no caption: line 2 of metadata.jsonl needs "file_',
    ),
    "two captions": (
        "metadata.jsonl",
        '{"file_name": "b.png", "text": "x"}\n{"file_name": "b_bg.png", "text": "y"}',
        "b: has two captions: line 3 of metadata.jsonl gives b another caption than a line before it",
    ),
    "empty caption": ("metadata.csv", "b.png,  ", "b: has no caption: line 3 of metadata.csv needs"),
    "a number": (
        "metadata.jsonl",
        '{"file_name": "b.png", "text": 3}',
        "b: has no caption: line 2 of metadata.jsonl needs",
    ),
    "too long": ("metadata.csv", "b.png," + "x" * 200_000, "line 3 of metadata.csv cannot be read: field larger than"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_one_bad_row_costs_one_picture_and_not_the_file(kind, tmp_path):
    for key in ("a", "b", "c"):
        write_files(tmp_path, [f"{key}_{part}.png" for part in ("fg", "bg", "mask")], None)
    name, bad, sentence = BAD_ROWS[kind]
    if name.endswith("csv"):
        text = f"file_name,text\na.png,a cup\n{bad}\nc.png,a cup\n"
    else:
        text = f"{json.dumps(LINE)}\n{bad}\n" + json.dumps({"file_name": "c.png", "text": "a cup"})
    (tmp_path / name).write_text(text)
    sources, skipped = find_sources(tmp_path)
    assert [source.name for source in sources] == ["a", "c"]
    assert any(line.startswith(sentence) for line in skipped) and len(skipped) <= 2
    assert any(line.startswith("b: has ") for line in skipped)


def test_commas_in_a_last_column_without_quotes_belong_to_the_caption(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a red cup, on a table, at noon\n")
    assert find_sources(tmp_path)[0][0].texts["caption"] == "a red cup, on a table, at noon"


def test_a_file_for_many_that_is_something_else_is_one_line(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"))
    (tmp_path / "metadata.json").write_text(json.dumps({str(number): number for number in range(50)}))
    (tmp_path / "metadata.csv").write_text("id,size\n1,2\n")
    sources, skipped = find_sources(tmp_path)
    assert len(sources) == 1 and len(skipped) == 2
    assert "metadata.csv: line 1 of metadata.csv needs the names file_name and text or caption" in skipped[0]


def test_a_csv_given_by_its_name_is_read_too(tmp_path):
    write_files(tmp_path / "in", ("a_fg.png", "a_bg.png", "a_mask.png"), "a.txt")
    (tmp_path / "words.csv").write_text("file_name,text\na_fg.png,a mug\n")
    assert packed(tmp_path / "in", tmp_path, captions=tmp_path / "words.csv").metadata(0)["caption"] == "a mug"


def test_more_of_the_texts_come_from_a_row_too(tmp_path):
    write_files(tmp_path, ("a_fg.png", "a_bg.png", "a_mask.png"), None)
    (tmp_path / "metadata.csv").write_text("file_name,text,thing\na.png,a cup,cup\n")
    assert find_sources(tmp_path)[0][0].texts["thing"] == "cup"


def test_unread_kinds_say_what_to_do(tmp_path, monkeypatch):
    write_set(tmp_path / "in", "a")
    (tmp_path / "in" / "b.heic").write_bytes(b"x")
    monkeypatch.setattr("t2l.data.part_names.ENDINGS", (".png",))
    (tmp_path / "in" / "c.avif").write_bytes(b"x")
    heic, avif = find_sources(tmp_path / "in")[1]
    assert heic == "b.heic: is of a kind that is not read; save it as .psd, .ora or as PNG files"
    assert avif.startswith("c.avif: is AVIF, which this pillow does not read: pip install --upgrade pillow")
