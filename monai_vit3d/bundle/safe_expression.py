"""The grammar of ``$`` expressions in safe mode: values, arithmetic, comprehensions and a short list of calls."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from . import allowlist as words

MAX_LENGTH = 2_000
_REFERENCES = "__local_refs"  # MONAI's name for the table of resolved ids, in the text that it evaluates

_PLAIN = (
    ast.List, ast.Tuple, ast.Set, ast.Dict, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript,
    ast.Slice, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.expr_context,
    ast.cmpop, ast.boolop, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr,
    ast.Not, ast.USub, ast.UAdd,
)  # fmt: skip
# a bound name that is read outside of its scope is a builtin there: so none may be bound
_NOT_TO_BIND = {*dir(builtins), *words.ALLOWED_MODULE_NAMES}


def import_violation(text: str) -> str:
    """Say why an import statement may not run, or "" if it may or the text is none.

    Args:
        text: the part after the ``$``.
    """
    tree, violation = _tree(text)
    if violation:
        return violation
    first = tree[0] if tree else None
    if not isinstance(first, ast.Import | ast.ImportFrom):
        return ""
    allowed = f"allowed are {', '.join(sorted(words.ALLOWED_IMPORTS))}"
    if len(tree) > 1 or isinstance(first, ast.ImportFrom) or len(first.names) > 1:
        return f"expected one module in an 'import'; {allowed}"
    name = first.names[0]
    statement = f"import {name.name}" + (f" as {name.asname}" if name.asname else "")
    return "" if statement in words.ALLOWED_IMPORTS else allowed


def is_lone_import(text: str) -> bool:
    """Return whether a text is one import statement and nothing else.

    Args:
        text: the part after the ``$``.
    """
    tree, violation = _tree(text)
    return not violation and len(tree) == 1 and isinstance(tree[0], ast.Import | ast.ImportFrom)


def expression_violation(config: str) -> str:
    """Say why an expression may not be evaluated, or "" if it may.

    Args:
        config: the expression with its ``$``, its relative ids made absolute.
    """
    from monai.bundle.reference_resolver import ReferenceResolver

    # MONAI replaces references in the text, even within quotes; so check the text that it evaluates
    references = set(ReferenceResolver.match_refs_pattern(config))
    text = ReferenceResolver.update_refs_pattern(config, dict.fromkeys(references))
    tree, violation = _tree(text[1:])
    if violation:
        return violation
    if len(tree) == 1 and isinstance(tree[0], ast.Import | ast.ImportFrom):
        return import_violation(text[1:])
    if len(tree) != 1 or not isinstance(tree[0], ast.Expr):
        return "expected one expression"
    try:
        bound = set(_bound_names(tree[0]))
        shadowed = sorted(n for n in bound if n in _NOT_TO_BIND or n.startswith("_"))
        if shadowed:
            return f"{shadowed[0]} is taken; expected another name for the variable"
        return next(_violations(tree[0].value, bound, references), "")
    except RecursionError:
        return "nested too deeply"


def _tree(text: str) -> tuple[list[ast.stmt], str]:
    if len(text) > MAX_LENGTH:
        return [], f"{len(text)} characters; at most {MAX_LENGTH} are allowed"
    try:
        return ast.parse(text).body, ""
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [], f"not Python ({error})"


def _bound_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id


def _violations(node: ast.AST, bound: set[str], references: set[str]) -> Iterator[str]:
    """Yield the violations of a node and of all nodes below it; only known kinds of node pass."""
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, str | int | float | None):
            yield f"{node.value!r} is not allowed"
    elif isinstance(node, ast.Name):
        if node.id not in bound:
            yield f"the name {node.id} is not allowed by itself; {_known(words.ALLOWED_VALUES)}"
    elif _is_reference(node, references):
        return
    elif isinstance(node, ast.Attribute):
        if _dotted(node) not in words.ALLOWED_VALUES and not words.is_enum_member(_dotted(node)):
            yield f"{_dotted(node) or '.' + node.attr} is not allowed; {_known(words.ALLOWED_VALUES)}"
    else:
        violation = _own_violation(node)
        if violation:
            yield violation
            return
        for child in _children(node):
            yield from _violations(child, bound, references)


def _own_violation(node: ast.AST) -> str:
    if isinstance(node, ast.Call):
        return _call_violation(node)
    if isinstance(node, ast.Lambda):
        extra = [*node.args.defaults, *node.args.kwonlyargs, *node.args.posonlyargs]
        return "expected a lambda of plain arguments" if extra or node.args.vararg or node.args.kwarg else ""
    if isinstance(node, ast.Dict) and None in node.keys:
        return "** is not allowed"
    if isinstance(node, ast.comprehension):
        targets = node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]
        plain = all(isinstance(t, ast.Name) for t in targets)
        return "" if plain and not node.is_async else "expected a comprehension over plain names"
    return "" if isinstance(node, _PLAIN) else f"{type(node).__name__} is not allowed"


def _call_violation(node: ast.Call) -> str:
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg.startswith("_"):
            return "** is not allowed in a call"
        if keyword.arg == "key" and not isinstance(keyword.value, ast.Lambda):
            return "key= needs a lambda, it would call anything else"
    name = _dotted(node.func)
    if name in words.ALLOWED_BUILTINS or name in words.ALLOWED_CALLS:
        return ""
    if isinstance(node.func, ast.Attribute) and node.func.attr in words.ALLOWED_METHODS:
        return ""
    shown = name or (f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else "this")
    methods = ", ".join(f".{m}" for m in sorted(words.ALLOWED_METHODS))
    return f"a call of {shown}; {_known(words.ALLOWED_CALLS | words.ALLOWED_BUILTINS)}, {methods}"


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Lambda):
        yield node.body
    elif isinstance(node, ast.Call):
        name = _dotted(node.func)
        if (
            name not in words.ALLOWED_BUILTINS
            and name not in words.ALLOWED_CALLS
            and isinstance(node.func, ast.Attribute)
        ):
            yield node.func.value
        yield from node.args
        yield from (keyword.value for keyword in node.keywords)
    else:
        yield from ast.iter_child_nodes(node)


def _is_reference(node: ast.AST, references: set[str]) -> bool:
    """Return whether a node is ``@id`` as MONAI writes it: ``__local_refs['id']``, of an id that is itself checked."""
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == _REFERENCES
        and isinstance(node.slice, ast.Constant)
        and node.slice.value in references
    )


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` of plain names, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if not isinstance(node, ast.Attribute):
        return ""
    base = _dotted(node.value)
    return f"{base}.{node.attr}" if base else ""


def _known(names: frozenset[str]) -> str:
    return f"allowed are {', '.join(sorted(names))}"
