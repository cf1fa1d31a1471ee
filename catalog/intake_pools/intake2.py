"""Catalogues of Intake 2 as their owners wrote them: read as data, checked, and made ours entry by entry.

References (``{data(…)}``) and parameters (``{name}``) are filled in here, never by Intake, which would import
what they name. Readers, types of data and steps of pipelines are those of the lists below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intake.readers import convert, datatypes, transform
from intake.readers import readers as stock
from intake.readers import user_parameters as parameters
from intake.readers.entry import Catalog
from intake.readers.search import SearchBase

from dask_pools.errors import EntryError
from intake_pools import templates
from intake_pools.entries import Entry
from intake_pools.known_drivers import refuse_options
from intake_pools.readers import PooledReader
from intake_pools.rules import directory_of, named_rules
from intake_pools.summary import INTAKE, Summarised
from intake_pools.urls import DiscreetOptions, public_url

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["PooledCatalog2"]

_STOCK = "intake.readers.readers:"
_OURS = (f"{_STOCK}XArrayDatasetReader", f"{_STOCK}XArrayPatternReader", "intake_pools.readers:PooledReader")
_PIPELINE = "intake.readers.convert:Pipeline"
# Readers that run no code of a catalogue's choice.
_INTAKES: dict[str, type] = {
    f"{_STOCK}{one.__name__}": one
    for one in (
        stock.PandasCSV,
        stock.PandasParquet,
        stock.DaskCSV,
        stock.DaskParquet,
        stock.FileTextReader,
        stock.FileSizeReader,
    )
}
_DATA: dict[str, type] = {
    f"intake.readers.datatypes:{one.__name__}": one
    for one in (
        datatypes.NetCDF3,
        datatypes.HDF5,
        datatypes.Zarr,
        datatypes.GRIB2,
        datatypes.OpenDAP,
        datatypes.CSV,
        datatypes.Parquet,
        datatypes.Text,
        datatypes.JSONFile,
        datatypes.FileData,
    )
}
_LOCATED = (datatypes.NetCDF3, datatypes.HDF5, datatypes.Zarr, datatypes.GRIB2)
_PARAMETERS: dict[str, Any] = {
    f"intake.readers.user_parameters:{one.__name__}": one
    for one in (
        parameters.BaseUserParameter,
        parameters.SimpleUserParameter,
        parameters.OptionsUserParameter,
        parameters.NamedOptionsUserParameter,
        parameters.MultiOptionUserParameter,
        parameters.BoundedNumberUserParameter,
    )
}
_TYPES = ("object", "str", "int", "float", "bool", "list", "tuple", "dict")
_STEPS: dict[str, Any] = {
    "intake.readers.transform:Method": transform.Method,
    "intake.readers.transform:GetItem": transform.GetItem,
    "intake.readers.transform:XarraySel": transform.XarraySel,
}
# Methods of Datasets that write nothing and call nothing that they are given.
_METHODS = frozenset(
    ("sel", "isel", "head", "tail", "thin", "squeeze", "transpose", "rename", "rename_vars",
     "rename_dims", "drop_vars", "drop_sel", "drop_isel", "drop_dims", "mean", "sum", "min", "max",
     "std", "var", "median", "prod", "count", "any", "all", "first", "last", "argmin", "argmax",
     "idxmin", "idxmax", "quantile", "cumsum", "cumprod", "diff", "rank", "clip", "round", "astype",
     "isnull", "notnull", "fillna", "ffill", "bfill", "dropna", "interp", "interp_like",
     "interpolate_na", "reindex", "sortby", "chunk", "groupby", "groupby_bins", "resample",
     "rolling", "rolling_exp", "coarsen", "weighted", "differentiate", "integrate", "shift", "roll",
     "pad", "stack", "unstack", "expand_dims", "swap_dims", "set_coords", "reset_coords",
     "set_index", "reset_index", "assign_attrs", "to_array", "to_dataset", "to_dataarray",
     "convert_calendar", "broadcast_like", "compute", "load", "persist",)
)  # fmt: skip


class PooledCatalog2(Summarised, Catalog):  # type: ignore[misc]  # Intake publishes no types
    """A catalogue of Intake 2 whose NetCDF and zarr entries are located.

    Made by `intake_pools.open_catalog`. Works as other catalogues of Intake 2 do (``list(cat)``,
    ``cat[name]``, ``cat.name``, ``cat.search``, ``cat(parameter=value)``); an entry that cannot be used
    says why when it is asked for. Its own file is not written.
    """

    path: str
    _document: dict[str, dict[str, Any]]
    _rules: DataCentres | None
    _named_rules: DataCentres | None
    container = "catalog of version 2"
    """What catalogues of version 1 ask of their entries; they take those of their own kind apart."""
    enclosing: Any = None
    """The catalogue, of version 1, that it is an entry of."""

    @classmethod
    def of_document(
        cls,
        data: Mapping[str, Any],
        path: str,
        *,
        data_centres: DataCentres | None = None,
        storage_options: Mapping[str, Any] | None = None,
        allow_code: bool = False,
    ) -> Any:
        """Make a catalogue of what is in its file.

        Parameters
        ----------
        data : mapping
        path : str
            Path or URL of the file.
        data_centres, storage_options, allow_code
            As in `intake_pools.open_catalog`.

        Raises
        ------
        EntryError
            If it is no catalogue of Intake 2.
        """
        if allow_code:
            return _trusted(data, path, data_centres, storage_options)
        shown = public_url(path)
        document: dict[str, dict[str, Any]] = {}
        for part in ("entries", "data", "aliases", "user_parameters", "metadata"):
            one = data.get(part)
            if one is None:
                one = {}
            if not isinstance(one, Mapping):
                raise EntryError(
                    f"{shown} is not an Intake catalogue: `{part}:` is of type {type(one).__name__}, not a "
                    "mapping."
                )
            document[part] = {str(key): value for key, value in one.items()}
        made = cls._made(document, path, data_centres, {})
        return made

    @classmethod
    def _made(
        cls,
        document: dict[str, dict[str, Any]],
        path: str,
        rules: DataCentres | None,
        overrides: Mapping[str, Any],
    ) -> PooledCatalog2:
        made: PooledCatalog2 = cls()
        made._document = document
        made._rules = rules
        made._named_rules = None
        made._up_overrides = dict(overrides)
        made.path = path
        made.metadata = document["metadata"]
        made.aliases = {name: one for name, one in document["aliases"].items() if isinstance(one, str)}
        return made

    def __call__(self, **kwargs: Any) -> PooledCatalog2:
        """Make another one with other values of its parameters."""
        return self._again(self._document, {**self._up_overrides, **kwargs})

    def _again(self, document: dict[str, dict[str, Any]], overrides: Mapping[str, Any]) -> PooledCatalog2:
        made = self._made(document, self.path, self._rules, overrides)
        made.enclosing = self.enclosing
        return made

    def search(self, expr: str | SearchBase) -> PooledCatalog2:
        """Make another one of some of its entries.

        Parameters
        ----------
        expr : str or intake.readers.search.SearchBase
            A text that occurs in them, or an expression that lets them through; it lets none through that
            cannot be used.
        """
        meets = self._meets if isinstance(expr, SearchBase) else self._contains
        kept = [key for key in self._document["entries"] if meets(key, expr)]
        aliases = {name: key for name, key in self.aliases.items() if key in kept}
        # What the others refer to stays within reach, under names that nobody lists.
        document = {**self._document, "aliases": aliases, "listed": dict.fromkeys(kept)}
        return self._again(document, self._up_overrides)

    def _meets(self, key: str, expr: SearchBase) -> bool:
        try:
            return bool(expr.filter(self._refer(key, ()).to_entry()))
        except EntryError:
            return False

    def _contains(self, key: str, expr: Any) -> bool:
        text, said = str(expr).lower(), self._document["entries"][key]
        return any(text in one.lower() for one in (key, str(said), *self.get_aliases(key)))

    def __iter__(self) -> Iterator[str]:
        yield from self.aliases
        aliased = set(self.aliases.values())
        for key in self._document.get("listed", self._document["entries"]):
            # Others have names that Intake made up.
            if key not in aliased and key not in self.aliases and not re.fullmatch("[0-9a-f]{16}", key):
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self.aliases or name in self._document["entries"] or name in self._document["data"]

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self})

    def walk(
        self, sofar: dict[str, Any] | None = None, prefix: list[str] | None = None, depth: int = 5
    ) -> dict[str, Any]:
        """Get all its entries by name; none is a catalogue.

        Whoever walks through one of version 1 that it is nested in has it as one entry, since its own are of
        another kind.
        """
        return dict.fromkeys(self) if sofar is None else sofar

    def known_data_centres(self) -> DataCentres | None:
        """Rules for its entries: those it was opened with or names, else those of the one it is nested in.

        Raises
        ------
        DataCentresError
            If the data-centres file that it names is missing or wrong.
        """
        from intake_pools.locate import rules_of

        if self._rules is None and self._named_rules is None:
            self._named_rules = named_rules(self.metadata, directory_of(self.path), self.path)
        known = self._rules or self._named_rules
        if known is None and self.enclosing is not None:
            inherited: DataCentres | None = self.enclosing.known_data_centres()
            return inherited
        return rules_of(known)

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        key = self.aliases.get(name, name)
        try:
            return self._refer(key, (), str(name))
        except EntryError as error:
            why = str(error).rstrip(".")
            raise EntryError(f"{name} of {public_url(self.path)} cannot be used: {why}.") from None

    def _described(self, name: str) -> Entry | str:
        reader = _start_of(self[name])
        return reader._resolved() if isinstance(reader, PooledReader) else INTAKE

    def _title(self) -> str:
        return public_url(self.path)

    def _refer(self, key: str, above: tuple[str, ...], name: str | None = None) -> Any:
        """Make the reader, or the data, that a name stands for."""
        key = self.aliases.get(key, key)
        above = _below(key, above)
        if key in self._document["entries"]:
            return self._reader(self._document["entries"][key], above, name or key)
        if key in self._document["data"]:
            return self._data(self._document["data"][key], self._context({}), above)
        raise EntryError(f"it refers to {key!r}, which is not there")

    def _reader(self, spec: Any, above: tuple[str, ...], name: str) -> Any:
        if not isinstance(spec, Mapping) or not isinstance(spec.get("reader"), str):
            raise EntryError("it should be a mapping with `reader:` and `kwargs:`")
        kwargs = _mapping(spec.get("kwargs"), "kwargs")
        own = _mapping(spec.get("user_parameters"), "user_parameters")
        metadata = dict(_mapping(spec.get("metadata"), "metadata"))
        reader = spec["reader"]
        if reader == _PIPELINE:
            return self._pipeline(kwargs, self._context(own), above, metadata)
        if reader in _OURS:
            return self._ours(kwargs, own, above, metadata, name)
        if reader not in _INTAKES:
            raise EntryError(
                f"its reader is {reader[:80]!r}, which is not supported: only readers that are known to "
                "run no code of a catalogue's choice are. If you trust who wrote the catalogue, open it "
                "with allow_code=True"
            )
        filled = {**self._filled(kwargs, self._context(own), above), "metadata": metadata}
        if isinstance(filled.get("args", []), list | tuple):
            try:
                return _INTAKES[reader](**filled)
            except Exception as error:  # arguments that it does not have
                raise EntryError(f"Intake's {reader.partition(':')[2]} does not take it: {error}") from None
        raise EntryError("its args should be a list")

    def _ours(
        self,
        kwargs: Mapping[str, Any],
        own: Mapping[str, Any],
        above: tuple[str, ...],
        metadata: dict[str, Any],
        name: str,
    ) -> PooledReader:
        made: list[tuple[dict[str, Any], Any]] = []
        for more in self._machines(kwargs, own, above):
            filled = self._filled(kwargs, {**self._context(own), **more.values}, above)
            refuse_options(filled)
            positional = filled.pop("args", None) or []
            if not isinstance(positional, list | tuple):
                raise EntryError("its args should be a list")
            data = filled.pop("data", positional[0] if positional else None)
            if not isinstance(data, _LOCATED):
                raise EntryError(
                    "its data should be NetCDF3, HDF5, Zarr or GRIB2 of intake.readers.datatypes"
                )
            made.append(({**filled, **more.said}, data))
        (first, data), others = made[0], made[1:]
        if others:
            first = {**first}
            first["replicas"] = [
                {
                    "urlpath": one.url,
                    "storage_options": one.storage_options,
                    "data_centre": args["data_centre"],
                    "said_in": args["said_in"],
                }
                for args, one in others
            ]
        if not all(isinstance(one, str) for one in first):
            raise EntryError("its kwargs should have names")
        reader = PooledReader(data, **{**first, "metadata": metadata})
        reader._rules = self.known_data_centres()
        reader._entry_name = name
        return reader

    def _machines(
        self, kwargs: Mapping[str, Any], own: Mapping[str, Any], above: tuple[str, ...]
    ) -> list[_Machine]:
        """Values that the data centres have for the parameters that an entry uses; else one without any."""
        used = templates.braces_in(kwargs)
        for reference in list(used):
            if (found := _REFERENCE.fullmatch(reference)) is not None:
                key = self.aliases.get(found[1].strip(), found[1].strip())
                used |= templates.braces_in(self._document["data"].get(key))
        known = self.known_data_centres()
        if known is None:
            return [_Machine({}, {})]
        valued = {name for one in known.data_centres.values() for name in one.parameters}
        wanted = sorted((used & valued) - set(self._up_overrides))
        if not wanted:
            return [_Machine({}, {})]
        located = known.with_parameters(wanted)
        if not located:
            raise EntryError(
                f"it needs the parameters {', '.join(wanted)}, and no data centre has values for all of them "
                f"under `parameters:` in {known.origin}"
            )
        return [
            _Machine(known.data_centres[name].parameters, {"data_centre": name, "said_in": evidence})
            for name, evidence in located.items()
        ]

    def _data(self, spec: Any, context: Mapping[str, Any], above: tuple[str, ...]) -> Any:
        if not isinstance(spec, Mapping):
            raise EntryError("its data should be a mapping with `datatype:` and `kwargs:`")
        kind = spec.get("datatype")
        if not isinstance(kind, str) or kind not in _DATA:
            raise EntryError(
                f"its data is of type {kind!r:.80}, which is not supported: only types that are known to "
                "run no code of a catalogue's choice are. If you trust who wrote the catalogue, open it "
                "with allow_code=True"
            )
        kwargs = _mapping(spec.get("kwargs"), "kwargs")
        own = _mapping(spec.get("user_parameters"), "user_parameters")
        # Options may come from parameters, so they are looked at when those are filled in.
        filled = self._filled(kwargs, {**self._defaults(own), **context}, above)
        refuse_options(filled)
        if isinstance(options := filled.get("storage_options"), Mapping):
            # Intake shows them in the repr of its data, and of what has that among its arguments.
            filled["storage_options"] = DiscreetOptions(options)
        try:
            return _DATA[kind](**filled, metadata=dict(_mapping(spec.get("metadata"), "metadata")))
        except Exception as error:  # arguments that it does not have
            raise EntryError(f"its data cannot be {kind.partition(':')[2]}: {error}") from None

    def _pipeline(
        self, kwargs: Mapping[str, Any], context: Mapping[str, Any], above: tuple[str, ...], metadata: Any
    ) -> Any:
        steps = kwargs.get("steps")
        if not isinstance(steps, list | tuple) or not steps:
            raise EntryError("its `steps:` should be a list")
        made: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        for number, step in enumerate(steps):
            if not isinstance(step, list | tuple) or len(step) != 3:
                raise EntryError(
                    f"step {number} should be a list of a function, its arguments and its options"
                )
            func, args, options = step
            if not isinstance(func, str) or not isinstance(args, list | tuple):
                raise EntryError(
                    f"step {number} should be a list of a function, its arguments and its options"
                )
            options = _mapping(options, "options of a step")
            if number == 0:
                start = self._resolve(func, context, above)
                if not isinstance(start, stock.BaseReader):
                    raise EntryError("its first step should be a reader of this catalogue, as {data(NAME)}")
                made.append((start, (), {}))
                continue
            named = re.fullmatch(r"\{func\(([\w.:]+)\)\}", func.strip())
            if named is None or named[1] not in _STEPS:
                raise EntryError(
                    f"step {number} is {func[:80]!r}, which is not supported: only steps that are known to "
                    "run no code of a catalogue's choice are. If you trust who wrote the catalogue, open "
                    "it with allow_code=True"
                )
            filled = self._filled(options, context, above)
            refuse_options(filled)
            if named[1].endswith(":Method"):
                _check_method(filled.get("method_name"))
            made.append((_STEPS[named[1]], tuple(self._filled(list(args), context, above)), filled))
        return convert.Pipeline(
            steps=made, out_instances=["xarray:Dataset"] * len(made), metadata=dict(metadata)
        )

    def _filled(self, value: Any, context: Mapping[str, Any], above: tuple[str, ...]) -> Any:
        """Fill in references and parameters."""
        return templates.fill(value, context, lambda name: self._resolve(name, context, above))

    def _resolve(self, text: str, context: Mapping[str, Any], above: tuple[str, ...]) -> Any:
        """Make what ``{data(NAME)}`` refers to."""
        found = _REFERENCE.fullmatch(text.strip().removeprefix("{").removesuffix("}"))
        if found is None:
            raise EntryError(f"{text[:80]!r} should be a reference, as {{data(NAME)}}")
        key = self.aliases.get(found[1].strip(), found[1].strip())
        if key in self._document["data"] and key not in self._document["entries"]:
            return self._data(self._document["data"][key], context, _below(key, above))
        return self._refer(key, above)

    def _context(self, own: Mapping[str, Any]) -> dict[str, Any]:
        context = {
            "CATALOG_PATH": self.path,
            "CATALOG_DIR": directory_of(self.path).rstrip("/"),
            **self._defaults(self._document["user_parameters"]),
            **self._defaults(own),
        }
        return context

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {str(name): _value(str(name), one, self._up_overrides) for name, one in given.items()}


class _Machine:
    """Values of the parameters in one data centre, and what they say about where an entry is."""

    def __init__(self, values: Mapping[str, str], said: Mapping[str, str]) -> None:
        self.values, self.said = dict(values), dict(said)


def _below(key: str, above: tuple[str, ...]) -> tuple[str, ...]:
    """Names on the way to one that is referred to, and it."""
    if key in above or len(above) > 50:
        raise EntryError(f"it refers to itself: {' → '.join((*above, key)[-5:])}")
    return (*above, key)


_REFERENCE = re.compile(r"\s*data\(([^(),]+)\)\s*")


def _start_of(made: Any) -> Any:
    return made.steps[0][0] if isinstance(made, convert.Pipeline) else made


def _mapping(given: Any, what: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise EntryError(f"its {what} should be a mapping, not {given!r:.80}")
    return given


def _check_method(name: Any) -> None:
    """Refuse methods that write or call; the name of a variable is none."""
    import xarray as xr

    variable = (
        isinstance(name, str)
        and not name.startswith("_")
        and not (hasattr(xr.Dataset, name) or hasattr(xr.DataArray, name))
    )
    if not variable and not (isinstance(name, str) and name in _METHODS):
        raise EntryError(
            f"its pipeline calls the method {name!r:.80}, which is not among those that are known to write "
            "nothing and to run no code of a catalogue's choice. If you trust who wrote the catalogue, "
            "open it with allow_code=True"
        )


def _value(name: str, spec: Any, stated: Mapping[str, Any]) -> Any:
    """Value of a parameter: the stated one, else its default, which is neither looked up nor run."""
    if not isinstance(spec, Mapping):
        value = stated.get(name, spec)
        _refuse_default(name, value)
        return value
    kind = spec.get("cls", "intake.readers.user_parameters:BaseUserParameter")
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        raise EntryError(
            f"its parameter {name!r} is of class {kind!r:.80}, which is none of Intake's parameters"
        )
    if spec.get("dtype", "object") not in _TYPES or spec.get("keytype", "str") not in _TYPES:
        raise EntryError(f"its parameter {name!r} is of a type that is none of: {', '.join(_TYPES)}")
    if name not in stated:
        _refuse_default(name, spec.get("default"))
        return spec.get("default")
    try:
        parameter = _PARAMETERS[kind].from_dict({key: one for key, one in spec.items() if key != "cls"})
        return parameter.with_default(stated[name]).default
    except Exception as error:  # conversions of all kinds
        raise EntryError(f"its parameter {name!r} cannot be {stated[name]!r:.80}: {error}") from None


def _refuse_default(name: str, value: Any) -> None:
    if isinstance(value, str):
        templates.refuse_code(value.strip().removeprefix("{"), f"the default of {name}: {value}")


def _trusted(
    data: Mapping[str, Any],
    path: str,
    data_centres: DataCentres | None,
    storage_options: Mapping[str, Any] | None,
) -> Any:
    """Let Intake make the catalogue, with all that it can run; only what reads with xarray becomes ours."""
    try:
        made = Catalog.from_yaml_file(path, storage_options=dict(storage_options or {}))
    except Exception as error:  # whatever it runs
        raise EntryError(f"Intake cannot open {public_url(path)}: {error}") from error
    rules: Any = None
    if data_centres is not None:
        # Plain data: Intake takes whatever else is among its arguments apart.
        rules = data_centres.origin
        if not os.path.isfile(rules):
            rules = data_centres.model_dump(mode="json", exclude_defaults=True)
    for entry in made.entries.values():
        if entry.reader in _OURS:
            entry.reader = _OURS[-1]
            if rules is not None:
                entry.kwargs = {**entry.kwargs, "data_centres": rules}
    return made
