"""Proves by reading the code that the pack runs no code it reads, opens no connection, and builds no SQL of values.

What is allowed is listed here by file, each with its reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autolora_core.library import readers

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for part in ("autolora_core", "nodes") for path in (ROOT / part).rglob("*.py")) + [
    ROOT / "__init__.py"
]
MODULES = frozenset(
    """pickle cPickle dill cloudpickle joblib marshal shelve socket socketserver ssl http urllib ftplib smtplib
    requests telnetlib httpx aiohttp websocket websockets xmlrpc subprocess multiprocessing pty ctypes cffi code codeop
    importlib runpy yaml webbrowser asyncio server""".split()
)
BUILT_IN = ("eval", "exec", "compile", "__import__", "breakpoint", "input")
CALLS = (
    "os.system",
    "os.popen",
    "os.startfile",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "np.load",
    "os.fork",
    "os.execv",
)
# file → module → why it may be imported there
ALLOWED = {
    "autolora_core/library/trouble.py": {"urllib": "urllib.parse, to quote a path for SQLite; nothing is fetched"},
    "autolora_core/library/readers.py": {
        "subprocess": "starts this very Python with a constant line of code that reads LoRA files for a large scan; "
        "nothing from outside is in the command, see test_the_only_program_that_is_started"
    },
    "autolora_core/encode/towers.py": {"importlib": "find_spec says where a package's files lie; nothing is imported"},
    "nodes/on_demand.py": {
        "importlib": "imports the pack's own node files, by the names that nodes/__init__.py writes out"
    },
    "nodes/routes.py": {
        "asyncio": "waits in ComfyUI's own loop for a thread of the pack; nothing is opened",
        "aiohttp": "web.Response, the form in which a route of ComfyUI's server answers",
    },
    "__init__.py": {"importlib": "find_spec asks whether this is ComfyUI; nothing is imported"},
}
ADDS_A_ROUTE = (
    r"""\.routes\b(?! import)|["']routes["']|app\.router\b|add_(static|get|post)\b|"""
    r"""\bweb\.(get|post|put|delete|route)\("""
)
BAD_PAGE = r"<\s*(script|img|iframe|svg|object|embed)|javascript:|\bon\w+\s*=\s*[\"']"
BAD_SCRIPT = (
    r"\b(inner|outer)HTML\b|insertAdjacentHTML|createContextualFragment|document\.write|DOMParser|\beval\b|new\s+Function|"
    r"set(Timeout|Interval)\(\s*[\"'`]|javascript:|[\"'`](https?:)?//(?!www\.w3\.org/2000/svg)|\bimport\s*\(|WebSocket|XMLHttpRequest|"
    r"sendBeacon|importScripts|srcdoc"
)
# Ray connects to the cluster that the user names on the command line; no node imports this package.
RAY = "autolora_core/cluster/"
# file → name in an f-string handed to SQLite → why it holds no value from outside
SQL_NAMES = {
    "autolora_core/library/answer_store.py": {
        "table": "one of the four tables of the file, written out in the loops around it", "column": "likewise",
        "old": "a constant query", "_latest.table": "its callers write it out",
    },
    "autolora_core/library/places.py": {"where": "marks for parameters", "marks": "question marks"},
    "autolora_core/cluster/part.py": {"table": "of the constant CONTENT_TABLES"},
    "autolora_core/cluster/driver.py": {"table": "of the constant CONTENT_TABLES", "values": "question marks"},
    "autolora_core/library/store.py": {"statement": "a part of the constant schema"},
    "autolora_core/library/cache_file.py": {"statement": "a part of a constant schema"},
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def dangerous(source: str) -> list[str]:
    """Imports and calls that are not allowed anywhere."""
    tree = ast.parse(source)
    found = [module for module in imports(tree) if module in MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in BUILT_IN + CALLS or called.endswith("load_library") else []
            found += [f"{called}(allow_pickle)" for word in node.keywords if word.arg == "allow_pickle"]
            if called.endswith("load_torch_file") and not any(
                word.arg == "safe_load" and isinstance(word.value, ast.Constant) and word.value.value is True
                for word in node.keywords
            ):
                found.append(f"{called} without safe_load=True")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_that_is_read_is_run_and_nothing_is_fetched(path):
    allowed = set(ALLOWED.get(name_of(path), {}))
    if name_of(path).startswith(RAY):
        allowed |= {"subprocess", "socket"}
    assert [what for what in dangerous(path.read_text(encoding="utf-8")) if what not in allowed] == []


def test_the_only_program_that_is_started(monkeypatch):
    """It is this Python, its code a constant, its one argument the pack's own folder."""
    program, *how, code, folder = readers._command()
    assert program == sys.executable and Path(folder) == ROOT and code == readers._START
    assert set(how) <= {"-s", "-E", "-I", "-X", "-W", "ignore", "-c", "utf8=0", "utf8=1"}
    monkeypatch.setattr(sys, "executable", "/opt/drawing program")
    with pytest.raises(ValueError, match="no Python"):
        readers._command()


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from urllib.request import urlopen", "import os\nos.system('x')", "eval('1')", "exec(text)",
     "import torch\ntorch.load(path)", "np.load(path, allow_pickle=True)", "comfy.utils.load_torch_file(path)",
     "comfy.utils.load_torch_file(path, safe_load=False)", "def f():\n    import subprocess",
     "import http.client as h"],
)  # fmt: skip
def test_the_reader_of_code_sees(source):
    assert dangerous(source)


def test_no_node_reaches_the_cluster():
    """Ray is for the command line: it runs code on other machines, and pickles what it sends them."""
    for path in FILES:
        if name_of(path).startswith("nodes/"):
            assert "cluster" not in path.read_text(encoding="utf-8"), f"{path} speaks of a cluster"


def loose_sql(source: str, allowed: dict[str, str]) -> list[str]:
    """Names, other than constants and those ``allowed``, that are put into a text handed to ``execute``."""
    tree, found = ast.parse(source), []
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
            continue
        if call.func.attr in ("execute", "executemany", "executescript"):
            found += [one for one in _loose(call.args[0], tree) if one not in allowed]
    return found


def _loose(text: ast.expr, tree: ast.AST, depth: int = 3) -> list[str]:
    if isinstance(text, ast.Constant):
        return []
    if isinstance(text, ast.JoinedStr):
        return [
            one for part in text.values if isinstance(part, ast.FormattedValue) for one in _loose(part.value, tree, 0)
        ]
    if isinstance(text, ast.Name) and text.id.isupper():
        return []
    if isinstance(text, ast.Name) and depth:
        given = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and text.id in map(ast.unparse, node.targets)
        ]
        if given:
            return [one for value in given for one in _loose(value, tree, depth - 1)]
    if isinstance(text, ast.Name) and any(text.id == arg.arg for arg in ast.walk(tree) if isinstance(arg, ast.arg)):
        return (
            [] if text.id == "query" else [text.id]
        )  # a function of one's own that runs a query: its callers are seen below
    return [ast.unparse(text)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sql_is_made_of_constants_and_marks(path):
    assert loose_sql(path.read_text(encoding="utf-8"), SQL_NAMES.get(name_of(path), {})) == []


@pytest.mark.parametrize(
    "source",
    ["db.execute(f'DELETE FROM x WHERE a = {value}')", "db.execute('SELECT ' + name)", "db.execute('%s' % name)",
     "sql = f'DROP TABLE {name}'\ndb.execute(sql)", "db.executescript(text)", "db.execute('{}'.format(name))"],
)  # fmt: skip
def test_the_reader_of_sql_sees(source):
    assert loose_sql(source, {})


def test_what_is_allowed_is_there():
    """A reason without its line is taken off the list."""
    for file, modules in ALLOWED.items():
        assert set(modules) <= set(imports(ast.parse((ROOT / file).read_text(encoding="utf-8")))), file
    for file, names in SQL_NAMES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{name.rpartition('.')[2]}\b", text) for name in names), file


def test_routes_are_added_in_one_place():
    """What they are, the running server tells: ``test_panel_routes``."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        found = re.search(ADDS_A_ROUTE, text)
        assert not found or name_of(path) == "nodes/routes.py", f"{path} adds a route"


def test_the_page_gets_text_and_scripts_that_make_no_markup():
    """Help pages hold no markup that runs; scripts never take a text for markup or for code, and load from nowhere."""
    web = [path for path in (ROOT / "web").rglob("*") if path.is_file()]
    assert web and {path.suffix for path in web} <= {".md", ".js", ".css"}
    for path in web:
        text, how = path.read_text(encoding="utf-8"), BAD_PAGE if path.suffix == ".md" else BAD_SCRIPT
        assert not re.search(how, text, re.I), path


@pytest.mark.parametrize(
    ("how", "text"),
    [("page", "<script>"), ("page", "[x](javascript:1)"), ("page", "<b onclick='x'>"), ("script", "a.innerHTML = name"),
     ("script", "el.insertAdjacentHTML('x', y)"), ("script", "eval(x)"), ("script", "new Function(x)"),
     ("script", 'import "https://example.org/x.js"'), ("script", "fetch('//example.org')"), ("script", "import(name)"),
     ("script", "new WebSocket(x)"), ("script", "setTimeout('x()', 1)"), ("script", "document.write(x)")],
)  # fmt: skip
def test_the_reader_of_pages_sees(how, text):
    assert re.search({"page": BAD_PAGE, "script": BAD_SCRIPT}[how], text, re.I)


def test_tools_are_pinned_and_the_packs_own_needs_are_not():
    """A node pack must not fight ComfyUI over versions; a test must mean the same tomorrow."""

    def needs(name: str) -> list[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    assert all(re.match(r"[\w-]+==[\d.]+(;|$)", line) for line in needs("requirements-dev.txt"))
    assert all(re.fullmatch(r"[\w-]+", line) for line in needs("requirements.txt"))
