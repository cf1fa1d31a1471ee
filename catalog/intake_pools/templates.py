"""Templates of other people's catalogues, filled in without running anything of theirs.

Intake 1 writes ``{{ name }}`` (Jinja), Intake 2 ``{name}``. Of Jinja, only what real catalogues use is let
through: names, conditions, ``%`` and ``~``, a few filters and methods of texts and dates. No loops, no
assignments, no globals, no attributes; what is made is bounded in size. So a template can neither run code,
read the environment nor take for ever. Knows neither entries nor Intake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from dask_pools.errors import EntryError

__all__ = ["braces_in", "fill", "names_in", "refuse_code", "render"]

_LONGEST = 100_000
"""Characters that a template may make."""

_WIDEST = 999
"""Characters to which a value may be padded."""

_NODES: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.Add, nodes.Sub, nodes.Mod,
    nodes.Concat, nodes.Neg, nodes.Pos, nodes.Tuple, nodes.List, nodes.Keyword, nodes.Filter, nodes.Getitem,
    nodes.Slice, nodes.Getattr, nodes.Call,
)  # fmt: skip
_FILTERS = frozenset(
    (
        "lower",
        "upper",
        "title",
        "capitalize",
        "string",
        "int",
        "float",
        "trim",
        "default",
        "d",
        "abs",
        "round",
    )
)
_METHODS = frozenset(
    ("lower", "upper", "title", "capitalize", "strip", "lstrip", "rstrip", "zfill", "format", "strftime",
     "isoformat", "startswith", "endswith")
)  # fmt: skip
_FIELDS = frozenset(("year", "month", "day", "hour", "minute"))
_CODE = ("env", "client_env", "shell", "client_shell", "import", "func", "pickle64")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset("%")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in _METHODS | _FIELDS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            _check_width(left, "*")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(own := getattr(value, "__self__", None), str):
            _check_width(own, "{")
        return super().wrap_str_format(value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(obj, "__self__", None), str):
            for one in args:
                if isinstance(one, int) and one > _WIDEST and obj.__name__ == "zfill":
                    raise SecurityError(f"{one} characters are too many")
        # Jinja's own names for its arguments are private.
        return SandboxedEnvironment.call(self, context, obj, *args, **kwargs)


def _check_width(template: str, nested: str) -> None:
    """Refuse formats that make long texts of short ones, such as ``%999999999d``."""
    inside = template[1:] if nested == "{" else template
    if (
        re.search(r"\d{4}", template)
        or (nested == "*" and "*" in template)
        or re.search(r"\{[^}]*\{", inside)
    ):
        raise SecurityError(f"the format {template[:40]!r} is too wide")


def _environment() -> _Sandbox:
    environment = _Sandbox(undefined=StrictUndefined, autoescape=False, cache_size=0)
    environment.globals.clear()
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    return environment


_SANDBOX = _environment()


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text or "{#" in text


@lru_cache(maxsize=2048)
def _parsed(text: str) -> tuple[Any, frozenset[str]]:
    """Compile a template after making sure of what is in it; the names that it uses."""
    if len(text) > _LONGEST:
        raise EntryError(f"the template {_short(text)} is too long")
    try:
        tree = _SANDBOX.parse(text)
        for node in tree.find_all(nodes.Node):
            _check(node, text)
        return _SANDBOX.from_string(tree), frozenset(find_undeclared_variables(tree))
    except TemplateError as error:
        raise EntryError(f"the template {_short(text)} cannot be read: {error.message}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
        # Nested more deeply than Python's own parser, which compiles it, can take.
        raise EntryError(f"the template {_short(text)} cannot be read: too complicated") from None


def _check(node: nodes.Node, text: str) -> None:
    what = ""
    if isinstance(node, nodes.Call):
        called = node.node
        if isinstance(called, nodes.Name):
            what = f"{called.name}(…)"
        elif not (isinstance(called, nodes.Getattr) and called.attr in _METHODS) or node.dyn_args:
            what = "a call of something unknown"
    elif isinstance(node, nodes.Getattr):
        if node.attr not in _METHODS | _FIELDS:
            what = f"the attribute {node.attr!r}"
    elif isinstance(node, nodes.Getitem):
        if not isinstance(node.arg, nodes.Slice | nodes.Neg) and not (
            isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, int)
        ):
            what = "an item that is not a number"
    elif isinstance(node, nodes.Filter):
        if node.name not in _FILTERS:
            what = f"the filter {node.name!r}"
    elif not isinstance(node, _NODES):
        what = f"{type(node).__name__!r} of Jinja"
    if what:
        raise EntryError(
            f"the template {_short(text)} has {what}, which is not run for a catalogue: it could read the "
            "environment or run code. Give the value as a parameter, or, if you trust who wrote the "
            "catalogue, open it with allow_code=True"
        )


def _short(text: str) -> str:
    from intake_pools.urls import public_url

    return repr(public_url(text if len(text) <= 80 else text[:80] + "…"))


def _walk(value: Any, on_text: Callable[[str], Any], depth: int = 0, budget: list[int] | None = None) -> Any:
    """Copy plain data with every text replaced."""
    budget = [_LONGEST] if budget is None else budget
    budget[0] -= 1
    if depth > 50 or budget[0] < 0:
        # Aliases of YAML make much of little, or contain themselves.
        raise EntryError("it is nested too deeply, or aliases make too much of it")
    if isinstance(value, str):
        return on_text(value)
    if isinstance(value, Mapping):
        return {key: _walk(one, on_text, depth + 1, budget) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(one, on_text, depth + 1, budget) for one in value]
    return value


def names_in(value: Any) -> set[str] | None:
    """Get the names that the Jinja templates in plain data use; None if there is no template.

    Raises
    ------
    EntryError
        If a template has what could run code.
    """
    found: list[frozenset[str]] = []

    def note(text: str) -> None:
        if _is_template(text):
            found.append(_parsed(text)[1])

    _walk(value, note)
    return set().union(*found) if found else None


def render(value: Any, context: Mapping[str, Any]) -> Any:
    """Fill in the Jinja templates in plain data.

    Parameters
    ----------
    value : mapping, list, text, or anything else that YAML makes
    context : mapping of str to value

    Raises
    ------
    EntryError
        If a template uses a name that is not in `context`, has what could run code, or makes too much.
    """

    def fill_in(text: str) -> Any:
        if not _is_template(text):
            return text
        template, _ = _parsed(text)
        try:
            made: str = template.render(context)
        except UndefinedError as error:
            known = ", ".join(sorted(context)) or "none"
            raise EntryError(
                f"the template {_short(text)} cannot be filled in: {error.message}. Known are: {known}. "
                "Values for the machines of a data centre go under `parameters:` of the data-centres file"
            ) from None
        except Exception as error:
            raise EntryError(f"the template {_short(text)} cannot be filled in: {error}") from None
        if len(made) > _LONGEST:
            raise EntryError(f"the template {_short(text)} makes a text of {len(made)} characters")
        return made

    return _walk(value, fill_in)


_NAME = re.compile(r"\{([^{}]*)\}")
_REFERENCE = re.compile(r"\s*\{?\s*data\([^()]*\)\s*\}?\s*")


def braces_in(value: Any) -> set[str]:
    """Get what is between braces in plain data."""
    found: set[str] = set()
    _walk(value, lambda text: found.update(_NAME.findall(text)))
    return found


def fill(value: Any, context: Mapping[str, Any], refer: Callable[[str], Any] | None = None) -> Any:
    """Fill in the ``{name}`` of Intake 2 in plain data; what is no name, as in patterns of files, stays.

    A text that is nothing but ``{name}`` becomes the value itself, of whatever type.

    Parameters
    ----------
    value : mapping, list, text, or anything else that YAML makes
    context : mapping of str to value
    refer : callable, optional
        Makes what ``{data(NAME)}`` refers to.

    Raises
    ------
    EntryError
        If it has what could run code.
    """

    def fill_in(text: str) -> Any:
        if refer is not None and _REFERENCE.fullmatch(text):
            return refer(text)
        if "{" not in text:
            return text
        for inside in _NAME.findall(text):
            refuse_code(inside, text)
        if (whole := _NAME.fullmatch(text)) and whole[1] in context:
            return context[whole[1]]
        made = _NAME.sub(lambda found: str(context.get(found[1], found[0])), text)
        if len(made) > _LONGEST:
            raise EntryError(f"{_short(text)} makes a text of {len(made)} characters")
        return made

    return _walk(value, fill_in)


def refuse_code(inside: str, text: str) -> None:
    """Refuse what Intake would run, import or look up in the environment.

    Raises
    ------
    EntryError
    """
    word = re.match(r"\s*(\w+)\s*\(", inside)
    if (word and word[1] in _CODE) or re.match(r"\s*\w+\s*(\.|\[|!)", inside):
        raise EntryError(
            f"{_short(text)} has {{{inside[:40]}}}, which is not run for a catalogue: it could read the "
            "environment or run code. Give the value as a parameter, or, if you trust who wrote the "
            "catalogue, open it with allow_code=True"
        )
