"""Turns docstrings in this project's style into what Sphinx reads, and names in prose into links.

A docstring here is plain text with `code` between single backticks, sections indented by two spaces, and examples. A
field of a record is documented by the comment behind it. Types are shown as they stand in the source: Sphinx would
write `Float[Array, "L 2"]` out.
"""

import ast
import importlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tokenize
import typing
from pathlib import Path
from typing import Any

CODE = re.compile(r"(`[^`]+`)")
NAME = re.compile(r"haqjax(\.\w+)+")
FILE = re.compile(r"^@file ([\w.]+)$", re.MULTILINE)
PAGES = re.compile(r"^@pages (\w+)$", re.MULTILINE)
PUBLIC = re.compile(r"^@public ([\w.]+)$", re.MULTILINE)
SPAN = re.compile(r"(?<![`}])`(haqjax(?:\.\w+)+)`(?!`)")


def connect(app: Any) -> None:
    """Hooks everything of this file into a build."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", write_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("missing-reference", find_alias)


# Pages


def read_page(app: Any, page: str, source: list[str]) -> None:
    """Puts in what a page asks for, `@file NAME`, `@pages FOLDER`, `@public PACKAGE`; and links names of functions."""
    text = FILE.sub(lambda found: _read_file(app, found[1]), source[0])
    up = "../" * page.count("/")
    text = text.replace(f"({up}search.md", f"({up}searches.md")  # Sphinx has a page "search" of its own
    text = PUBLIC.sub(lambda found: list_public(found[1]), text)
    text = PAGES.sub(lambda found: list_pages(Path(app.srcdir), found[1]), text)
    source[0] = SPAN.sub(lambda found: link_name(found[1]), text)


def _read_file(app: Any, name: str) -> str:
    path = Path(app.srcdir) / name
    app.env.note_dependency(str(path))
    return path.read_text(encoding="utf-8")


def list_public(package: str) -> str:
    """Lists a directive for each name in `__all__`; what `import haqjax` brings stands on its page alone."""
    module, first = importlib.import_module(package), importlib.import_module("haqjax")
    here = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    elsewhere = [n for n, value in here.items() if package != "haqjax" and getattr(first, n, None) is value]
    lines = [_directive(package, name, value) for name, value in here.items() if name not in elsewhere]
    pointer = f"On the first page: {', '.join(f'`haqjax.{name}`' for name in elsewhere)}.\n\n" if elsewhere else ""
    return pointer + "```{eval-rst}\n" + "\n".join(lines) + "\n```"


def _directive(package: str, name: str, value: Any) -> str:
    if typing.is_typeddict(value):  # which autodoc has no signature for
        return f".. py:class:: {package}.{name}({', '.join(value.__annotations__)})\n\n   {value.__doc__}\n"
    kind = kind_of(value)
    return f".. auto{kind}:: {package}.{name}" + ("\n   :no-value:\n" if kind == "data" else "")


def kind_of(value: Any) -> str:
    """Names a value as autodoc does.

    >>> kind_of(3), kind_of(int), kind_of(print)
    ('data', 'class', 'function')
    """
    if inspect.isclass(value):
        return "class"
    return "function" if callable(value) else "data"


def list_pages(root: Path, folder: str) -> str:
    """Writes a table of contents of a folder, which may be empty or not there."""
    if not any((root / folder).glob("*.md")):
        return ""
    return f"```{{toctree}}\n:hidden:\n:glob:\n:caption: {folder.capitalize()}\n\n{folder}/*\n```"


def link_name(name: str) -> str:
    """Writes a name in prose as a link to where it is documented; a module has no such place.

    >>> link_name("haqjax.layers"), link_name("haqjax.policies.rules")
    ('{py:obj}`haqjax.layers`', '`haqjax.policies.rules`')
    """
    return f"`{name}`" if inspect.ismodule(resolve(name)) else f"{{py:obj}}`{name}`"


def resolve(name: str) -> Any:
    """Finds what a full name stands for; None where it stands for nothing."""
    try:
        return pkgutil.resolve_name(name) if NAME.fullmatch(name) else None
    except (ImportError, AttributeError):
        return None


def find_alias(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Finds what is documented under another name: a function has its own place and a public one, a type no module.

    What exists and is not documented stays without a link. What does not exist is left to be complained of.
    """
    domain, target = env.get_domain("py"), node.get("reftarget", "")
    wanted = resolve(target)
    for name in domain.objects:
        same = resolve(name) is wanted if wanted is not None else name.rpartition(".")[2] == target
        if same and name.startswith("haqjax."):
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None if wanted is None else content


# Docstrings


def write_docstring(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Rewrites a docstring in place."""
    text = "\n".join(lines)
    if kind == "data":
        text = find_comment(name)
    if kind == "class":
        text += list_fields(value)
    lines[:] = as_rst(text).splitlines()


def as_rst(text: str) -> str:
    """Writes code and returns in the syntax of Sphinx; examples stay as they are.

    >>> as_rst("Doubles `x`.").splitlines() + as_rst("Returns:" + chr(10) + "  Both: `2 * x`.").splitlines()
    ['Doubles ``x``.', ':returns: Both: ``2 * x``.']
    """
    parts = re.split(r"(^ *>>> .*?(?:\n[ ]*\n|\Z))", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_inline(re.sub(r"^Returns:\n\s+", ":returns: ", part, flags=re.MULTILINE)) for part in parts[::2]]
    return "".join(parts)


def _inline(text: str) -> str:
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"(\*(?=\S)|[|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=[\w`])", r"\\ ", part) for part in parts[2::2]]  # code ends before a letter
    parts[1::2] = [_code(part) for part in parts[1::2]]
    return "".join(parts)


def _code(span: str) -> str:
    linked = NAME.fullmatch(span[1:-1]) and not inspect.ismodule(resolve(span[1:-1]))
    return f":py:obj:{span}" if linked else f"`{span}`"


# Source


def parse(value: Any) -> tuple[Any, str]:
    """Parses the definition of a function or class; returns its source, too."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
    return ast.parse(source).body[0], source


def write_signature(
    app: Any, kind: str, name: str, value: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Writes a signature as in the source; of a record the names of its fields, whose types are listed below."""
    try:
        node, source = parse(value)
    except (TypeError, OSError):
        return None
    if isinstance(node, ast.ClassDef):
        fields = [field for field, _ in find_fields(node, source)]
        return (f"({', '.join(map(_parameter, fields))})", "") if fields else None
    if not isinstance(node, ast.FunctionDef):
        return None
    if kind in ("method", "property") and node.args.args:
        del node.args.args[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns).strip("'") if node.returns else ""


def _parameter(field: ast.AnnAssign) -> str:
    name, default = ast.unparse(field.target), field.value
    if default is None or (isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field")):
        return name
    return f"{name}={ast.unparse(default)}"


def list_fields(value: type) -> str:
    """Lists the fields of a record, with their types and comments."""
    try:
        fields = find_fields(*parse(value))
    except (TypeError, OSError):
        return ""
    return "".join(f"\n* `{ast.unparse(f.target)}` : `{ast.unparse(f.annotation)}` {comment}" for f, comment in fields)


def find_fields(node: ast.ClassDef, source: str) -> list[tuple[ast.AnnAssign, str]]:
    """Finds each field of a class with the comment behind it, or else above it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        t.start[0]: (t.string.lstrip("# "), t.line.lstrip().startswith("#"))
        for t in tokens
        if t.type == tokenize.COMMENT
    }
    found = []
    for field in node.body:
        if isinstance(field, ast.AnnAssign):
            behind, _ = comments.get(field.end_lineno or 0, ("", False))
            above, at = [], field.lineno - 1
            while comments.get(at, ("", False))[1]:
                above.insert(0, comments[at][0])
                at -= 1
            found.append((field, ": ".join(part for part in (" ".join(above), behind) if part)))
    return found


def find_comment(name: str) -> str:
    """Finds the comment behind or above a constant, in whichever module of its package it is made, and its keys."""
    package, _, constant = name.rpartition(".")
    made = re.compile(rf"((?:^#.*\n)*)^{constant}\b(?=[ :]).*?=[^#\n]*(#.*)?$", re.MULTILINE)
    modules = [module for key, module in sorted(sys.modules.items()) if f"{key}.".startswith(f"{package}.")]
    found = next(filter(None, (made.search(inspect.getsource(module)) for module in modules)), None)
    comment = " ".join(line.strip("# ") for part in (found.groups("") if found else ()) for line in part.splitlines())
    value = pkgutil.resolve_name(name)
    keys = ", ".join(f"`{key}`" for key in value) if isinstance(value, dict) else f"`{value!r}`"
    return f"{comment[:1].upper()}{comment[1:]}\n\n{keys}\n"


def skip_field(app: Any, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of records, which are listed with the record."""
    return True if type(value).__name__ == "_tuplegetter" else None
