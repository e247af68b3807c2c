"""Help pages and translations against the nodes they describe; nodes/ is read as text, ComfyUI is not needed."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "nodes").glob("*.py"))]
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


def socket(call: ast.Call) -> dict[str, str]:
    """Name and tooltip; an input without a display_name goes by its own name."""
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
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


def test_every_node_in_the_sources_is_read():
    assert set(re.findall(r'node_id="(\w+)"', "".join(SOURCES))) == SCHEMAS.keys() != set()


def test_english_says_what_the_nodes_say():
    assert definitions("en") == {node: entry(schema) for node, schema in SCHEMAS.items()}


def test_both_languages_describe_the_same_nodes_and_sockets():
    assert keys(definitions("zh")) == keys(definitions("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_holds_signs_that_the_frontend_reads_as_commands(language):
    """vue-i18n takes braces for a placeholder, @ for a link and | for a plural."""
    assert not [text for text in texts(definitions(language)) if not text.strip() or re.search(r"[{}@|]", text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_nothing_else_has_a_help_page(language):
    assert {page.parent.name for page in (ROOT / "web" / "docs").glob(f"*/{language}.md")} == SCHEMAS.keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_help_page_has_a_row_for_every_input_and_output(language):
    for node, english in definitions("en").items():
        rows = re.findall(r"^\| `(\w+)`", (ROOT / "web" / "docs" / node / f"{language}.md").read_text("utf-8"), re.M)
        assert rows == [*english["inputs"], *(output["name"] for output in english["outputs"].values())], node
