"""The rooms of t2l and the arrows between them, lines and links: CONTRIBUTING.md in executable form."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "t2l").rglob("*.py"))
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in FILES}
EVERYWHERE = {"layers", "config", "budget", "draws", "keep"}
ROOMS = {
    "layers",
    "budget",
    "config",
    "draws",
    "keep",
    "diffusion",
    "compositing",
    "io",
    "model",
    "generate",
    "data",
    "labelling",
    "training",
    "evaluation",
    "cli",
}

# From a room, or one file of it, to what it may import besides itself and what is EVERYWHERE. Nothing else is
# allowed.
ARROWS = {
    "layers": set(),
    "budget": set(),
    "config": set(),
    "draws": set(),
    "keep": set(),
    "diffusion": set(),
    "compositing": set(),
    "io": {"compositing"},
    "model": {"compositing", "diffusion", "io.atomic", "io.checkpoint", "io.header"},
    "data": {"compositing", "io"},
    "generate": {"model", "diffusion"},
    "labelling": {"data"},
    "training": {"model", "data", "diffusion", "io"},
    "training.stages": {"model", "data", "io", "generate", "evaluation"},
    "labelling.train_filter": {"model", "data", "evaluation.features", "evaluation.metrics", "io"},
    "evaluation": set(),
    "evaluation.report": {"generate", "model", "data", "io"},
    "evaluation.drawing": {"generate", "model", "data", "io"},
    "evaluation.judges": {"model", "io"},
    "cli": ROOMS,
    "__init__": ROOMS,
    "__main__": {"cli"},
}
NEVER = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "t2l"}  # t2l: imports inside are relative
ONLY_INSIDE_FUNCTIONS = {
    "diffusers",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "tensorboardX",
    "onnxruntime",
    "OpenEXR",
    "psd_tools",
    "pyarrow",
    "ray",
    "patchmatch",
}


def module_name(file: Path) -> str:
    """`model.unet` for t2l/model/unet.py, `__init__` for t2l/__init__.py."""
    parts = file.relative_to(ROOT / "t2l").with_suffix("").parts
    return ".".join(parts[:-1]) if parts[-1] == "__init__" and len(parts) > 1 else ".".join(parts)


def inner_imports(file: Path) -> set[str]:
    """The modules of t2l that a file imports relatively, without the leading `t2l.`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = file.relative_to(ROOT).parts[: -node.level]
        target = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{target}.{alias.name}"
            found.add((inner if inner in MODULES else target).removeprefix("t2l").removeprefix("."))
    return found - {""}


def outer_imports(file: Path, top_level_only: bool = False) -> set[str]:
    """The packages that a file imports absolutely; with top_level_only, those imported when the file is."""
    tree = ast.parse(file.read_text())
    nodes = _run_at_import(tree) if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def _run_at_import(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        is_type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not is_type_checking:
            yield child
            yield from _run_at_import(child)


def row_of(source: str) -> str:
    """The row of ARROWS that a module obeys: its own, or else its room's."""
    return source if source in ARROWS else source.split(".")[0]


def is_allowed(source: str, target: str) -> bool:
    allowed = ARROWS[row_of(source)] | EVERYWHERE | {source.split(".")[0]}
    return any(f"{target}.".startswith(f"{arrow}.") for arrow in allowed)


NAMED = {module_name(file): file for file in FILES}


def test_no_imports_go_in_a_circle():
    waiting = {name: inner_imports(file) for name, file in NAMED.items()}
    while ready := [name for name, found in waiting.items() if not (found & waiting.keys() - {name})]:
        waiting = {name: found for name, found in waiting.items() if name not in ready}
    assert not waiting, f"these import each other, some of them in a circle: {sorted(waiting)}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_every_import_follows_an_arrow(file):
    source = module_name(file)
    forbidden = {target for target in inner_imports(file) if not is_allowed(source, target)}
    assert not forbidden, f"t2l/{source} must not import {sorted(forbidden)}: see the arrows in CONTRIBUTING.md"


def test_every_arrow_is_used():
    used = {(row_of(name), target) for name, file in NAMED.items() for target in inner_imports(file)}
    unused = [
        (row, arrow)
        for row in ARROWS.keys() - {"cli", "__init__"}
        for arrow in ARROWS[row]
        if not any(source == row and f"{target}.".startswith(f"{arrow}.") for source, target in used)
    ]
    assert not unused, f"nobody needs {unused}: take them out of the table"


def test_a_forbidden_arrow_is_seen():
    assert is_allowed("labelling.train_filter", "evaluation.metrics") and is_allowed("evaluation.report", "generate")
    assert not is_allowed("training.train_unet", "evaluation.report")
    assert not is_allowed("evaluation.metrics", "model.autoencoder")
    assert not is_allowed("data.pack", "model.autoencoder")
    assert not is_allowed("model.text2layer", "io.image")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_no_file_imports_comfyui_or_t2l_by_its_absolute_name(file):
    assert not outer_imports(file) & NEVER


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_heavy_packages_are_imported_where_they_are_used(file):
    assert not outer_imports(file, top_level_only=True) & ONLY_INSIDE_FUNCTIONS


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda file: file.stem)
def test_nodes_import_comfyui_t2l_relatively_and_nothing_heavy(file):
    assert not outer_imports(file) & (ONLY_INSIDE_FUNCTIONS | {"t2l", "nodes"})
    assert len(file.read_text().splitlines()) <= 500 and ast.get_docstring(ast.parse(file.read_text()))


def test_the_pack_asks_for_nothing_that_comfyui_does_not_have_but_psd_tools():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert {line.split(">")[0] for line in lines} <= {"torch", "numpy", "safetensors", "tokenizers", "psd-tools"}
    library = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in library for line in lines if ">" in line), "the same versions"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_every_file_says_what_it_is_and_stays_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 500
    if file.name != "__init__.py" or file.parent.name == "t2l":
        assert ast.get_docstring(ast.parse(text)), f"{file.name} has no docstring"


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(code: str) -> set[str]:
    """Top-level modules in memory after running the code in a fresh interpreter."""
    return set(run_python(f"{code}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})").split())


def test_importing_t2l_loads_nothing_heavy():
    assert not loaded_after("import t2l") & {"torch", "numpy", "PIL", "diffusers", "transformers", "comfy", "tqdm"}


def test_the_layers_load_only_torch():
    assert not loaded_after("from t2l import Layers") & {"PIL", "diffusers", "transformers", "comfy", "torchvision"}


def test_the_autoencoder_needs_neither_diffusers_nor_transformers():
    assert not loaded_after("from t2l import LayeredAutoencoder") & {"diffusers", "transformers", "comfy"}


def test_every_public_name_exists():
    code = "import t2l\nfor name in t2l.__all__: print(name, getattr(t2l, name).__name__)"
    names = dict(line.split() for line in run_python(code).splitlines())
    assert len(names) == len(set(names)) and names.pop("text_to_layers") == "generate"
    assert all(name == found for name, found in names.items())


def test_a_misspelt_public_name_is_answered_with_those_that_exist():
    import t2l

    with pytest.raises(AttributeError, match="t2l has no Layer; it has .*Layers"):
        t2l.Layer  # noqa: B018


WRITTEN = [
    "*",
    "t2l/**/*",
    "nodes/*",
    "tests/**/*",
    "docs/**/*",
    "recipes/**/*",
    "benchmarks/**/*",
    "models/*",
    "workflows/*",
    "web/**/*",
]
SOURCES = sorted(file for where in WRITTEN for file in ROOT.glob(f"{where}.py"))
DOCUMENTS = sorted(file for where in WRITTEN for file in ROOT.glob(f"{where}.md"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def prose(file: Path) -> list[tuple[int, str]]:
    """The lines of a document with their numbers, without code blocks and tables."""
    lines = re.sub(r"(?ms)^```.*?^```", lambda code: "\n" * code[0].count("\n"), file.read_text("utf-8")).split("\n")
    return [(i, line) for i, line in enumerate(lines, 1) if not re.match(r"    [^ ]|\|", line)]


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_no_line_of_a_source_has_more_than_120_characters(file):
    long = [i for i, line in enumerate(file.read_text("utf-8").splitlines(), 1) if len(line) > 120]
    assert not long, f"{name_of(file)} has longer lines: {long}"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_no_line_of_a_document_has_more_than_120_characters(file):
    long = [i for i, line in prose(file) if len(line) > 120 and " " in line.strip(" -")]  # one long link may stay
    assert not long, f"{name_of(file)} has longer lines: {long}"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    found: list[str] = []
    for _, line in prose(document):
        if heading := re.match(r"#+ +(.*)", line):
            slug = re.sub(r"[^\w -]", "", heading[1].lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(file):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", file.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), f"{name_of(file)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(there), f"{name_of(file)} links to {target}: no such heading"
