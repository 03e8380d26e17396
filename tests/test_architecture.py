"""The plan of the house: imports run one way, read off the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "erase_sd"

# What each room may import; itself always. Rooms further down know nothing of those above.
MAY = {
    "_lazy": set(),
    "_version": set(),
    "pixels": set(),
    "processes": set(),
    "prompts": {"models"},
    "algebra": set(),
    "models": set(),
    "text": {"algebra", "models"},
    "artifact": {"algebra", "models", "_version"},
    "fit": {"algebra", "models", "text", "artifact", "prompts"},
    "emoji": {"algebra", "models", "pixels"},
    "pipelines": {"algebra", "models", "text", "artifact", "fit", "prompts", "pixels", "_lazy"},
    "vision": {"algebra", "models", "text", "artifact", "emoji", "pixels", "_lazy"},
    "eval": {
        "algebra",
        "models",
        "text",
        "artifact",
        "fit",
        "prompts",
        "pipelines",
        "pixels",
        "processes",
        "_lazy",
        "_version",
    },
    "operations": {
        "algebra",
        "models",
        "text",
        "artifact",
        "fit",
        "prompts",
        "pipelines",
        "eval",
        "_lazy",
    },
    "training": {
        "algebra",
        "models",
        "artifact",
        "pipelines",
        "operations",
        "processes",
        "_lazy",
        "_version",
    },
    "cli": {"*"},
    "demo": {"*"},
}
# Third-party libraries that only these rooms may import.
ONLY = {"diffusers": {"pipelines", "eval", "training", "demo", "emoji"}, "gradio": {"demo"}}


def imports(path, root):
    """(module, line, whether at the top of the file) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set()
    for node in tree.body:
        top.add(node)
        if isinstance(node, ast.If):  # `if TYPE_CHECKING:`
            top |= set(node.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inside = root.joinpath(*node.module.split(".")[1:], f"{alias.name}.py")
                module = f"{node.module}.{alias.name}" if inside.is_file() else node.module
                yield module, node.lineno, node in top


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def files(root):
    return [p for p in sorted(root.rglob("*.py")) if "weights" not in p.parts]


def wrong_arrows(root):
    """Imports of our own that run up, and heavy libraries where they do not belong."""
    wrong = []
    for path in files(root):
        relative = path.relative_to(root)
        here = relative.parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module, line, _ in imports(path, root):
            base = module.split(".")[0]
            if base == "lab":
                wrong.append(f"{relative}:{line} imports the laboratory")
            if (
                base == "erase_sd"
                and "*" not in MAY[here]
                and room(module) not in {here, *MAY[here]}
            ):
                wrong.append(f"{relative}:{line} {here} -> {room(module)}")
            if here not in ONLY.get(base, {here}):
                wrong.append(f"{relative}:{line} imports {base}")
    return wrong


def hidden(root):
    """Imports of our own modules inside functions, but for the command line.

    Which must start in milliseconds.
    """
    found = []
    for path in files(root):
        relative = path.relative_to(root)
        if relative.parts[0] in ("cli", "__init__.py"):
            continue
        found += [
            f"{relative}:{line} {module}"
            for module, line, top in imports(path, root)
            if module.split(".")[0] == "erase_sd" and not top
        ]
    return found


def circles(root):
    """Files that import each other, by a depth-first walk."""
    graph = {}
    for path in files(root):
        name = ".".join(["erase_sd", *path.relative_to(root).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        graph[name] = {m for m, _, top in imports(path, root) if m.startswith("erase_sd.") and top}
    done, found = set(), []

    def walk(name, trail):
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for module in sorted(graph.get(name, ())):
                walk(module, [*trail, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def too_long(root):
    """Modules over 300 lines and functions over 60; tables of data aside."""
    found = []
    for path in files(root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        if text.count("\n") > 300:
            found.append(f"{name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.end_lineno - node.lineno >= 60
            ):
                found.append(f"{name}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    return found


def test_arrows_run_one_way():
    assert not wrong_arrows(PACKAGE)


def test_no_two_rooms_import_each_other():
    known = {(a, b) for a, targets in MAY.items() for b in targets}
    assert not [(a, b) for a, b in known if (b, a) in known]


def test_imports_of_our_own_stand_at_the_top():
    assert not hidden(PACKAGE)


def test_no_two_files_import_each_other():
    assert not circles(PACKAGE)


@pytest.mark.parametrize(
    ("where", "code", "finder"),
    [
        ("algebra/x.py", "from erase_sd.fit.solve import fit", wrong_arrows),
        ("fit/x.py", "import diffusers", wrong_arrows),
        ("eval/x.py", "def f():\n    import gradio", wrong_arrows),
        ("text/x.py", "from lab import speed", wrong_arrows),
        ("fit/x.py", "def f():\n    from erase_sd.text import encoder", hidden),
        ("fit/x.py", "x = 1\n" * 301, too_long),
        ("fit/x.py", "def f():\n" + "    x = 1\n" * 60, too_long),
    ],
)
def test_each_of_these_tests_can_fail(tmp_path, where, code, finder):
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert len(finder(tmp_path)) == 1


def test_the_circle_finder_can_find_one(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.py").write_text("import erase_sd.text.b")
    (tmp_path / "text" / "b.py").write_text("from erase_sd.text import a")
    assert circles(tmp_path) == ["erase_sd.text.a -> erase_sd.text.b -> erase_sd.text.a"]


@pytest.mark.parametrize("root", [PACKAGE, ROOT / "tests"], ids=lambda p: p.name)
def test_rooms_and_their_sizes(root):
    assert not too_long(root)


def test_few_functions_take_many_parameters():
    many = []
    for path in files(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [
                    a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                ]
                if len([n for n in names if n not in ("self", "cls")]) > 8:
                    many.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert len(many) <= 1, many
