"""The data-centres file: which data centre hosts which paths and URLs, and how it gets workers.

One schema and one parser for it. A file reads::

    data_centres:
      ecmwf:
        prefixes: [/data/ecmwf/, "s3://ecmwf-"]
      eumetsat:
        prefixes: [/data/eumetsat/, "s3://eumetsat-archive/level-2"]
        globs: [/scratch/*/eumetsat/]
        hosts: ["*.eumetsat.int"]
        endpoints: ["https://s3.eumetsat.int"]
        parameters: {DATA_PATH: "$HOME/eumetsat"}
        workers: {launcher: local, threads: 2}
        site: {host: login.eumetsat.int}

The rule that covers most of a place wins. A prefix matches whole components: ``/data/ecmwf`` hosts
``/data/ecmwf`` and what is below it, but not ``/data/ecmwf2``; ``s3://bucket/a`` not ``s3://bucket/ab``. The
one exception is the stem of bucket names: a URL without a path that ends in ``-``, ``_``, ``.`` or directly
after ``://``, as ``s3://ecmwf-`` does. No bucket's own name ends so, and every bucket whose name begins so is
meant.
Paths and URLs are normalised before they are compared, so ``/data/ecmwf/../other`` is below ``/data``.

The file is the user's own, so environment variables may be used in its values. This module knows neither
catalogues nor launchers; what ``workers:`` may say is in `dask_pools.workers`, and
what ``site:``, ``scheduler:`` and ``network:`` may, in `dask_pools.network`.
"""

from __future__ import annotations

import difflib
import math
import os
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import dask
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from dask_pools.errors import DataCentresError
from dask_pools.network import SCHEDULER, NetworkKind, SchedulerSection, SiteSection
from dask_pools.pins import check_name
from dask_pools.places import KINDS, SCHEME, Place, Rule, Rules, form_of, place_of
from dask_pools.workers import WRONG, Workers
from dask_pools.workers import parse as parse_workers

__all__ = [
    "DataCentre",
    "DataCentres",
    "Given",
    "Place",
    "Rule",
    "default",
    "load",
    "merge",
    "parse",
    "place_of",
    "read",
]

_Value = TypeVar("_Value")

# Key of a data centre that lists rules, and their kind.
_LISTS = {f"{kind}es" if kind.endswith("x") else f"{kind}s": kind for kind in KINDS}
# Names that mean something else in a catalogue.
_NOT_PARAMETERS = ("CATALOG_DIR", "CATALOG_PATH", "STORAGE_OPTIONS")
# A data-centres file has four levels and, of 1,000 rules, 5,000 nodes.
_DEEP, _MANY = 20, 200_000


class DataCentre(BaseModel):
    """What the file says about one data centre.

    Attributes
    ----------
    prefixes : tuple of str
        Absolute paths and URLs below which it hosts everything.
    globs : tuple of str
        The same with ``*`` and ``?`` within a component, and ``**`` for any number of components.
    hosts : tuple of str
        Host names of URLs, ``*.example.org`` for all of a domain.
    endpoints : tuple of str
        URLs of the S3 endpoints of its object stores, as `storage_options` of an entry name them.
    regions : tuple of str
        Regions of public clouds, for buckets whose region is asked for.
    parameters : dict of str to str
        Values of the parameters with which catalogues for several machines name their paths.
    residency : "stay" or None
        ``stay`` if raw chunks may not leave.
    workers : dask_pools.workers.Workers or None
        How to get workers there; None if this file does not say.
    site : dask_pools.network.SiteSection or None
        Its control host, and how it is reached; None if this file does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prefixes: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    parameters: dict[str, str] = Field(default_factory=dict)
    residency: Literal["stay"] | None = None
    site: SiteSection | None = None
    # Left out where rules are written down, as where they are pickled.
    workers: Annotated[Workers | None, PlainValidator(parse_workers)] = Field(default=None, exclude=True)

    def __getstate__(self) -> dict[Any, Any]:
        """Get what is pickled: rules travel with graphs, and what is said about workers may be secret."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "workers": None}}

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator(*_LISTS)
    @classmethod
    def _proper(cls, patterns: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for pattern in patterns:
            form_of(_LISTS[str(info.field_name)], pattern)
        return patterns

    @field_validator("parameters")
    @classmethod
    def _named(cls, parameters: dict[str, str]) -> dict[str, str]:
        for name in parameters:
            if not name.isidentifier() or name in _NOT_PARAMETERS:
                raise ValueError(
                    f"{name!r} cannot be the name of a parameter; write a word, such as DATA_PATH"
                )
        return parameters


class DataCentres(BaseModel):
    """The content of a data-centres file.

    Attributes
    ----------
    version : int
        Of the format; 1.
    data_centres : dict of str to DataCentre
    costs : dict of str to dict of str to float
        What a byte costs from one data centre (outer key) to another (inner key), relative to the others:
        prices or inverse bandwidths. Pairs that are not there cost 1.
    network : {"mesh", "tls"}
        How what goes between data centres is carried.
    scheduler : dask_pools.network.SchedulerSection
        How the machine of the scheduler is reached.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    data_centres: dict[str, DataCentre]
    costs: dict[str, dict[str, float]] = Field(default_factory=dict)
    network: NetworkKind = "mesh"
    scheduler: SchedulerSection = Field(default_factory=SchedulerSection)

    _origin: str = PrivateAttr(default="the data centres given")
    _rules: Rules = PrivateAttr(default_factory=Rules)
    _lines: dict[tuple[Any, ...], tuple[str, int | None]] = PrivateAttr(default_factory=dict)

    @field_validator("data_centres")
    @classmethod
    def _named(cls, value: dict[str, DataCentre]) -> dict[str, DataCentre]:
        for name in value:
            check_name(name)
        return value

    @field_validator("costs")
    @classmethod
    def _priced(cls, costs: dict[str, dict[str, float]], info: ValidationInfo) -> dict[str, dict[str, float]]:
        known = info.data.get("data_centres", {})
        for name in {*costs, *(to for row in costs.values() for to in row)}:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name!r} is not among data_centres.{hint}")
        for row in costs.values():
            for cost in row.values():
                if not (0 < cost < math.inf):
                    raise ValueError(f"{cost} is no cost; it should be a number above 0")
        return costs

    @property
    def names(self) -> list[str]:
        """Names of the data centres, sorted."""
        return sorted(self.data_centres)

    @property
    def origin(self) -> str:
        """The file, or what else this comes from, for messages."""
        return self._origin

    @property
    def rules(self) -> list[Rule]:
        """Every rule, in the order of the file."""
        return list(self._rules)

    def matches(self, url: str, storage_options: Mapping[str, Any] | None = None) -> list[Rule]:
        """Rules that match a path or URL, the deciding one first.

        Parameters
        ----------
        url : str
        storage_options : mapping, optional
            Options for fsspec, which may name an endpoint.
        """
        # Past pydantic, whose own way to what is private takes a tenth of the time of all this.
        rules: Rules = (self.__pydantic_private__ or {})["_rules"]
        return rules.matches(url, storage_options)

    def nearest(self, url: str) -> Rule | None:
        """Find the rule whose prefix looks most like the beginning of `url`, if one looks alike at all."""
        return self._rules.nearest(url)

    def of_region(self, scheme: str, region: str) -> Rule | None:
        """Rule for a region of a public cloud, such as ``eu-west-2`` of ``s3``, or None."""
        return self._rules.of_region(scheme, region)

    def with_parameters(self, names: Iterable[str]) -> dict[str, str]:
        """Find data centres that have a value for each of these parameters, with what says so.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        dict of str to str
            Evidence by data centre, in the order of the file.
        """
        wanted = list(names)
        return {
            name: "; ".join(f"parameter {one} ({self._where(name, 'parameters', one)})" for one in wanted)
            for name, data_centre in self.data_centres.items()
            if all(one in data_centre.parameters for one in wanted)
        }

    def _where(self, *at: str) -> str:
        return _at(*self._lines.get(("data_centres", *at), (self._origin, None)))

    def _index(self, origin: str, lines: Mapping[tuple[Any, ...], tuple[str, int | None]]) -> None:
        self._origin, self._lines = origin, dict(lines)
        self._check_sites()
        for name, data_centre in self.data_centres.items():
            for plural, kind in _LISTS.items():
                for number, pattern in enumerate(getattr(data_centre, plural)):
                    where, line = lines.get(("data_centres", name, plural, number), (origin, None))
                    longer = " or make it longer" if kind in ("prefix", "glob") else ""
                    if other := self._rules.add(Rule(name, pattern, where, line, kind)):
                        raise DataCentresError(
                            f"{_at(where, line)}: {kind} {pattern!r} of data centre {name!r} is also a "
                            f"{kind} of {other.data_centre!r}: {other}. A {kind} belongs to one data centre; "
                            f"remove one of the two{longer}."
                        )

    def _check_sites(self) -> None:
        """Refuse relays that are no sites, and a site of the scheduler's name."""
        sites = {name: one.site for name, one in self.data_centres.items() if one.site is not None}
        relays: dict[tuple[str, ...], str | None] = {("scheduler",): self.scheduler.relay}
        relays |= {("data_centres", name, "site"): site.relay for name, site in sites.items()}
        known = [*sites, SCHEDULER]
        for at, relay in relays.items():
            if relay is not None and relay not in known:
                near = difflib.get_close_matches(relay, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                where = _at(*self._lines.get((*at, "relay"), (self._origin, None)))
                raise DataCentresError(
                    f"{where}: {_dotted((*at, 'relay'))}: {relay!r} is no site of this file.{hint} Sites: "
                    f"{', '.join(known)}."
                )
        if SCHEDULER in sites:
            where = _at(*self._lines.get(("data_centres", SCHEDULER), (self._origin, None)))
            raise DataCentresError(
                f"{where}: a data centre with a site cannot be called {SCHEDULER!r}: that is what the "
                "scheduler's own site is called. Give it another name."
            )


def parse(text: str, origin: str, *, environment: Mapping[str, str] | None = None) -> DataCentres:
    """Read the text of a data-centres file.

    Parameters
    ----------
    text : str
    origin : str
        The file's name, for messages.
    environment : mapping, optional
        Values for ``$NAME`` and ``${NAME}`` in the text's values; by default those of the environment. Of a
        file that is not the user's own, it should be empty.

    Raises
    ------
    DataCentresError
        With file, line, key and what is allowed.
    """
    lines: dict[tuple[Any, ...], int] = {}
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise DataCentresError(f"{origin} is empty. It should read: {_SHAPE}")
        _walk(node, (), lines, origin, (), [0])
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise DataCentresError(f"{yaml_complaint(error, origin)} It should read: {_SHAPE}") from None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        # Such as the date 2026-99-99, which is a date by its form.
        raise DataCentresError(
            f"{origin}: a value cannot be read: {error}. It should read: {_SHAPE}"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()
    data = _with_environment(data, (), os.environ if environment is None else environment, origin, lines)
    return _validate(data, origin, lines)


def _with_environment(
    data: Any,
    at: tuple[Any, ...],
    environment: Mapping[str, str],
    origin: str,
    lines: Mapping[tuple[Any, ...], int],
) -> Any:
    """Put values of the environment in; a dollar is written ``$$``."""
    if isinstance(data, dict):
        return {
            key: _with_environment(one, (*at, key), environment, origin, lines) for key, one in data.items()
        }
    if isinstance(data, list):
        return [_with_environment(one, (*at, n), environment, origin, lines) for n, one in enumerate(data)]
    if not isinstance(data, str) or "$" not in data:
        return data
    where = _at(origin, _line_of(at, lines))
    try:
        return string.Template(data).substitute(environment)
    except KeyError as error:
        known = "" if environment else " This file is not your own, so it has no access to the environment."
        raise DataCentresError(
            f"{where}: {_dotted(at)} uses the environment variable {error.args[0]!r}, which is not set."
            f"{known} A dollar itself is written $$."
        ) from None
    except ValueError:
        raise DataCentresError(
            f"{where}: {_dotted(at)} has a $ without a name; a dollar itself is written $$."
        ) from None


_SHAPE = "data_centres: {NAME: {prefixes: [/data/, 's3://bucket']}}"


def yaml_complaint(error: yaml.YAMLError, origin: str) -> str:
    """Say in one sentence where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    if mark is None:
        return f"{origin} is not well-formed YAML: {problem}."
    return f"{origin}, line {mark.line + 1}, column {mark.column + 1}: not well-formed YAML: {problem}."


def _walk(
    node: yaml.Node,
    path: tuple[Any, ...],
    lines: dict[tuple[Any, ...], int],
    origin: str,
    above: tuple[yaml.Node, ...],
    count: list[int],
) -> None:
    """Note the line of every key and item; refuse what YAML would pass over in silence."""
    count[0] += 1
    if any(node is one for one in above):
        raise DataCentresError(f"{_at(origin, node.start_mark.line + 1)}: an alias contains itself.")
    if len(above) > _DEEP or count[0] > _MANY:
        raise DataCentresError(
            f"{_at(origin, node.start_mark.line + 1)}: nested too deeply, or aliases make too much of it."
        )
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*path, number)] = item.start_mark.line + 1
            _walk(item, (*path, number), lines, origin, above, count)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key_node, value in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise DataCentresError(f"{_at(origin, line)}: a key must be a plain word.")
            if key in seen:
                raise DataCentresError(
                    f"{_at(origin, line)}: key {_dotted((*path, key))!r} is there twice, first on line "
                    f"{seen[key]}. Keep one."
                )
            seen[key] = line
            lines[(*path, key)] = line
            _walk(value, (*path, key), lines, origin, above, count)


def _validate(data: Any, origin: str, lines: Mapping[tuple[Any, ...], int]) -> DataCentres:
    try:
        model = DataCentres.model_validate(data)
    except ValidationError as error:
        complaints = "\n".join(
            _complaint(one, at, allowed, origin, lines)
            for one, at, allowed in _each(error.errors(include_url=False), (), DataCentres)
        )
        raise DataCentresError(complaints) from None
    model._index(origin, {at: (origin, line) for at, line in lines.items()})
    return model


def _each(
    errors: Iterable[Any], above: tuple[Any, ...], model: type[BaseModel]
) -> Iterator[tuple[Any, tuple[Any, ...], list[str]]]:
    """Every error with where it is and which keys there may be; of sections, those that are in them."""
    for error in errors:
        if error["type"] == WRONG:
            yield from _each(error["ctx"]["errors"], (*above, *error["loc"]), error["ctx"]["model"])
        else:
            yield error, (*above, *error["loc"]), _allowed(model, error["loc"])


def _allowed(model: type[BaseModel], at: tuple[Any, ...]) -> list[str]:
    """Keys that a file may have beside the one at `at`."""
    for part in at[:-1]:
        if part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Classes of sections that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from _models(one)


def _complaint(
    error: Any,
    at: tuple[Any, ...],
    allowed: list[str],
    origin: str,
    lines: Mapping[tuple[Any, ...], int],
) -> str:
    kind, where, key = error["type"], _at(origin, _line_of(at, lines)), _dotted(at)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key {key!r}.{hint} Allowed here: {', '.join(allowed)}."
    in_section = at[2:3] in (("workers",), ("site",)) or at[:1] in (("network",), ("scheduler",))
    shape = "" if in_section else f" The file should read: {_SHAPE}"
    if kind == "missing":
        return f"{where}: key {key!r} is missing.{shape}"
    if kind == "value_error":
        return f"{where}: {f'{key}: ' * bool(key)}{error['msg'].removeprefix('Value error, ')}"
    if in_section:
        expected = _EXPECTED_IN_SECTIONS.get(kind, error["msg"].removeprefix("Input should be "))
        return f"{where}: {key} should be {expected}, not {error['input']!r}."
    expected = _EXPECTED.get(kind, error["msg"])
    return (
        f"{where}: {key or 'the file'} should be {expected}, not {error['input']!r}. It should read: {_SHAPE}"
    )


def _line_of(at: tuple[Any, ...], lines: Mapping[tuple[Any, ...], int]) -> int | None:
    return next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), None)


_EXPECTED = {
    "literal_error": "'stay', or not there",
    "float_type": "a number",
    "tuple_type": "a list of paths and URLs",
    "string_type": "a path or URL",
    "dict_type": "a mapping of names to data centres",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
# In sections, whose keys are of many kinds.
_EXPECTED_IN_SECTIONS = {
    "string_type": "a text (in quotes, should it look like a number)",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _at(origin: str, line: int | None) -> str:
    return origin if line is None else f"{origin}, line {line}"


def read(path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None) -> DataCentres:
    """Read a data-centres file, on disk or at any URL that fsspec knows.

    Parameters
    ----------
    path : str or path
    environment : mapping, optional
        As in `parse`.

    Raises
    ------
    DataCentresError
        If it is not there, cannot be read, or is wrong.
    """
    name = os.path.expanduser(os.fspath(path))
    # Without what the URL may have of credentials: it is in evidence and messages.
    shown = str(place_of(name)) if SCHEME.match(name) else name
    try:
        if SCHEME.match(name):
            import fsspec

            with fsspec.open(name, "rt", encoding="utf-8") as file:
                text = file.read()
        else:
            text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.replace(name, shown).rstrip(".")
        raise DataCentresError(f"The data-centres file {shown} cannot be read: {reason}.") from None
    return parse(text, shown, environment=environment)


Given = DataCentres | str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any]
"""What data centres may be given as: see `load`."""


def load(given: Given, *, environment: Mapping[str, str] | None = None) -> DataCentres:
    """Get data centres from a file, a mapping of the same content, as they are, or from a list of these.

    Parameters
    ----------
    given : DataCentres, path, mapping, or list of them
        Those of a list are merged: see `merge`.
    environment : mapping, optional
        As in `parse`.

    Raises
    ------
    DataCentresError
        If one is wrong, or two contradict each other.
    """
    if type(given) is DataCentres:  # pydantic's isinstance takes longer
        return given
    if isinstance(given, Mapping):
        return _validate(dict(given), "the data centres given", {})
    if isinstance(given, list | tuple):
        return merge([load(one, environment=environment) for one in given])
    if not isinstance(given, str | os.PathLike):
        raise DataCentresError(
            f"The data centres given are {given!r}; give the path of a data-centres file, a mapping of its "
            "content, or a list of these."
        )
    return read(given, environment=environment)


def merge(several: Sequence[DataCentres]) -> DataCentres:
    """Put several files together, as if all were one.

    Parameters
    ----------
    several : sequence of DataCentres
        At least one.

    Raises
    ------
    DataCentresError
        If one rule belongs to two data centres, or a parameter, a cost, `workers`, `site`, `network` or
        `scheduler` has two values.
    """
    if len(several) == 1:
        return several[0]
    if not several:
        raise DataCentresError("No data centres are given: the list of data-centres files is empty.")
    lines: dict[tuple[Any, ...], tuple[str, int | None]] = {}
    merged: dict[str, DataCentre] = {}
    costs: dict[str, dict[str, float]] = {}
    for one in several:
        for name, data_centre in one.data_centres.items():
            known = merged.get(name, DataCentre())
            fields: dict[str, Any] = {}
            for plural in _LISTS:
                had, come = getattr(known, plural), getattr(data_centre, plural)
                for number, _ in enumerate(come):
                    here = ("data_centres", name, plural)
                    lines[(*here, len(had) + number)] = one._lines.get((*here, number), (one.origin, None))
                fields[plural] = had + come
            for parameter in data_centre.parameters:
                at = ("data_centres", name, "parameters", parameter)
                lines.setdefault(at, one._lines.get(at, (one.origin, None)))
            if workers := _one_of(known.workers, data_centre.workers, f"workers of {name}", one):
                fields["workers"] = workers
            if site := _one_of(known.site, data_centre.site, f"details of the site of {name}", one):
                fields["site"] = site
            merged[name] = DataCentre(
                **fields,
                parameters=_joined(
                    known.parameters, data_centre.parameters, f"parameter {{}} of {name}", one
                ),
                residency=data_centre.residency or known.residency,
            )
        for name, row in one.costs.items():
            costs[name] = _joined(costs.get(name, {}), row, f"the cost from {name} to {{}}", one)
    top: dict[str, Any] = {}
    for one in several:
        for key in {"network", "scheduler"} & one.model_fields_set:
            top[key] = _one_of(top.get(key), getattr(one, key), f"values of {key}", one)
    together = DataCentres(data_centres=merged, costs=costs, **top)
    together._index(" and ".join(dict.fromkeys(one.origin for one in several)), lines)
    return together


def _joined(
    had: dict[str, _Value], come: dict[str, _Value], what: str, source: DataCentres
) -> dict[str, _Value]:
    for key, value in come.items():
        if key in had and had[key] != value:
            raise DataCentresError(
                f"{source.origin}: {what.format(key)} is {value!r}, but {had[key]!r} in another "
                "data-centres file. Keep one."
            )
    return {**had, **come}


def _one_of(had: _Value, come: _Value, what: str, source: DataCentres) -> _Value:
    if had is not None and come is not None and had != come:
        raise DataCentresError(
            f"{source.origin}: the {what} are described differently in another data-centres file. Keep one."
        )
    return had if come is None else come


def default() -> DataCentres | None:
    """Get the data centres that `dask.config` names (``pools.data-centres``), or None.

    The setting is the path of a file, a mapping of the same content, or a list of these. Files are read again
    when they have changed.
    """
    global _default
    given = dask.config.get("pools.data-centres", None)
    if given is None:
        return None
    state = [_state(one) for one in (given if isinstance(given, list | tuple) else [given])]
    known = _default
    if known is None or state != known[0]:
        # Kept in one piece: several threads may be here.
        _default = known = state, load(given)
    return known[1]


_default: tuple[list[object], DataCentres] | None = None


def _state(given: Any) -> object:
    """Get what changes when a file does."""
    if not isinstance(given, str | os.PathLike):
        return given
    try:
        status = os.stat(os.path.expanduser(given))
    except OSError:
        return object()  # a URL, or not there: read it every time
    return os.fspath(given), status.st_mtime_ns, status.st_size, os.getcwd()
