"""Help pages and translations against the nodes they describe; nodes/ is read as text, ComfyUI is not needed.

The frontend asks for docs/<node>/<language>.md, and for a language without one falls back to docs/<node>.md, the
English page.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
SOURCES = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "nodes").glob("*.py"))]
CODE = "".join(SOURCES + [file.read_text(encoding="utf-8") for file in (ROOT / "t2l").rglob("*.py")])
LANGUAGES = ["en", "zh"]


def top_level_values() -> dict[str, ast.expr]:
    """What the names at the top of the nodes' files stand for: POLARITY, LAYER_INPUTS, ..."""
    assignments = [node for text in SOURCES for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in assignments for target in node.targets if isinstance(target, ast.Name)}


VALUES = top_level_values()


def text_of(expr: ast.expr) -> str:
    """A string, a name that stands for one, or an f-string of such."""
    if isinstance(expr, ast.Name):
        return text_of(VALUES[expr.id])
    if isinstance(expr, ast.JoinedStr):
        return "".join(text_of(part.value if isinstance(part, ast.FormattedValue) else part) for part in expr.values)
    return ast.literal_eval(expr)


def calls_of(expr: ast.expr) -> list[ast.Call]:
    """The sockets of a list, with names and stars followed."""
    if isinstance(expr, ast.Name):
        return calls_of(VALUES[expr.id])
    if isinstance(expr, ast.Starred):
        return calls_of(expr.value)
    return [expr] if isinstance(expr, ast.Call) else [call for item in expr.elts for call in calls_of(item)]


def entry(schema: ast.Call) -> dict[str, Any]:
    """What nodeDefs.json says in English about a node with this schema."""
    fields = {keyword.arg: keyword.value for keyword in schema.keywords}
    texts = {name: text_of(fields[name]) for name in ("display_name", "description")}
    inputs = {text_of(call.args[0]): socket(call) for call in calls_of(fields["inputs"])}
    outputs = {str(i): socket(call) for i, call in enumerate(calls_of(fields["outputs"]))}
    return texts | {"inputs": inputs, "outputs": outputs}


HELPERS = {  # of nodes/types.py: what their arguments are
    "list_output": ("kind", "display_name", "tooltip"),
    "side_input": ("name", "tooltip"),
    "number_input": ("name", "default", "low", "high", "step", "tooltip"),
    "choice_input": ("name", "choices", "tooltip"),
}


def socket(call: ast.Call) -> dict[str, str]:
    """Name and tooltip; an input without a display_name goes by its own name."""
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
    if isinstance(call.func, ast.Name):
        fields |= dict(zip(HELPERS[call.func.id], call.args, strict=True))
    name = fields["display_name"] if "display_name" in fields else call.args[0]
    return {"name": text_of(name)} | ({"tooltip": text_of(fields["tooltip"])} if "tooltip" in fields else {})


SCHEMAS = {
    text_of(keyword.value): call
    for text in SOURCES
    for call in ast.walk(ast.parse(text))
    if isinstance(call, ast.Call)
    for keyword in call.keywords
    if keyword.arg == "node_id"
}


def definitions(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def keys(value: Any) -> Any:
    """The same nesting with the texts left out."""
    return {name: keys(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def texts(value: Any) -> list[str]:
    return [text for inner in value.values() for text in texts(inner)] if isinstance(value, dict) else [value]


def page(node: str, language: str) -> str:
    path = DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


def row_starts(node: str, language: str) -> list[str]:
    """How the rows of a page begin: the name in the code, the name on screen where it is another, the tooltip."""
    english, local = (definitions(name)[node] for name in ("en", language))
    inputs = [(name, local["inputs"][name]) for name in english["inputs"]]
    outputs = [(output["name"], local["outputs"][i]) for i, output in english["outputs"].items()]
    return [row_start(name, shown) for name, shown in inputs + outputs]


def row_start(name: str, shown: dict[str, str]) -> str:
    on_screen = "" if shown["name"] == name else f" {shown['name']}"
    return f"| `{name}`{on_screen} | {shown.get('tooltip', '')}"


def test_every_node_in_the_sources_is_read():
    assert set(re.findall(r'node_id="(\w+)"', "".join(SOURCES))) == SCHEMAS.keys() != set()


def test_english_says_what_the_nodes_say():
    assert definitions("en") == {node: entry(schema) for node, schema in SCHEMAS.items()}


def test_both_languages_describe_the_same_nodes_and_sockets():
    assert keys(definitions("zh")) == keys(definitions("en"))


def test_chinese_keeps_names_in_english_but_no_sentence():
    assert not [text for text in texts(definitions("zh")) if " " in text and not re.search(r"[\u4e00-\u9fff]", text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_holds_signs_that_the_frontend_reads_as_commands(language):
    """vue-i18n takes braces for a placeholder, @ for a link and | for a plural."""
    assert not [text for text in texts(definitions(language)) if not text.strip() or re.search(r"[{}@|]", text)]


def test_every_node_and_nothing_else_has_help_pages():
    pages = {f"{node}{suffix}" for node in SCHEMAS for suffix in (".md", "/zh.md")}
    assert {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*") if file.is_file()} == pages


@pytest.mark.parametrize("node", SCHEMAS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_begins_with_what_the_node_does(node, language):
    shown = definitions(language)[node]
    assert page(node, language).startswith(f"# {shown['display_name']}\n\n{shown['description']}\n")


@pytest.mark.parametrize("node", SCHEMAS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_has_a_row_with_the_tooltip_of_every_input_and_output(node, language):
    rows, starts = re.findall(r"^\| `.*", page(node, language), re.M), row_starts(node, language)
    assert [row[: len(start)] for row, start in zip(rows, starts, strict=False)] == starts
    assert len(rows) == len(starts)


@pytest.mark.parametrize("node", SCHEMAS)
def test_a_help_page_explains_sentences_that_the_code_can_say(node):
    """Quoted without the values: `must be ... got`."""
    quoted = {
        language: re.findall("^- \\*\\*(.+?)\\*\\*[:\uff1a]", page(node, language), re.M) for language in LANGUAGES
    }
    assert quoted["en"] == quoted["zh"] != []
    assert not [part for sentence in quoted["en"] for part in sentence.split(" ... ") if part not in CODE]
