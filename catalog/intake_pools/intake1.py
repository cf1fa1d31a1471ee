"""Catalogues of Intake 1 as their owners wrote them: read as data, checked, and made ours entry by entry.

An entry becomes an Intake source when it is asked for, after everything in it has been checked. `plugins:` is
never imported, templates are filled in by `intake_pools.templates`, drivers are those of
`intake_pools.known_drivers`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intake.catalog.base import Catalog
from intake.catalog.entry import CatalogEntry
from intake.catalog.utils import COERCION_RULES, coerce

from dask_pools.errors import EntryError
from intake_pools import documents, templates
from intake_pools.entries import Entry, refuse_writing
from intake_pools.known_drivers import Driver, adapted, driver_of, refuse_options
from intake_pools.rules import directory_of, named_rules
from intake_pools.summary import CATALOGUE, INTAKE, Summarised
from intake_pools.urls import public_options, public_url

if TYPE_CHECKING:
    from dask_pools.data_centres import DataCentres

__all__ = ["CombinedCatalog", "PooledCatalog", "PooledEntry", "open_catalogue_at"]

_DEEPEST = 20
"""Levels of nested catalogues."""


class OtherVersion(Exception):
    """A file turned out to be a catalogue of Intake 2.

    Attributes
    ----------
    data : dict
        What is in it.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.data = data


class LocatedEntries(Summarised, Catalog):  # type: ignore[misc]  # Intake publishes no types
    """A catalogue of `PooledEntry`, which can say of each where it lives."""

    def _described(self, name: str) -> Entry | str:
        pooled = self._get_entries()[name]
        if pooled.trusted:
            return INTAKE
        if isinstance(pooled.driver(), str):
            return CATALOGUE
        return pooled.get()._resolved() if pooled.located else INTAKE

    def _title(self) -> str:
        return str(self.name)


class CombinedCatalog(LocatedEntries):
    """The entries of several files."""

    name = "combined_catalog"


class PooledCatalog(LocatedEntries):
    """A catalogue of Intake 1 whose NetCDF and zarr entries are located.

    Made by `intake_pools.open_catalog`. Works as other Intake catalogues do (``list(cat)``, ``cat.search``,
    ``cat.walk``, ``cat[name]``, ``cat.name``); an entry that cannot be used is listed, and says why when it
    is asked for.

    Parameters
    ----------
    path : str
        Path or URL.
    data_centres : DataCentres, optional
        Rules that it was opened with.
    storage_options : dict, optional
        For the file system of its URL.
    allow_code : bool, optional
        Whether its author is trusted: Intake then opens whatever is not ours, with all that it can run.
    above : tuple of str
        Paths of the catalogues in which this one is nested.
    """

    name = "pooled_catalog"
    container = "catalog"
    enclosing: PooledCatalog | None = None
    """The catalogue that it is an entry of."""

    def __init__(
        self,
        path: str,
        data_centres: DataCentres | None = None,
        storage_options: dict[str, Any] | None = None,
        allow_code: bool = False,
        above: tuple[str, ...] = (),
        name: str | None = None,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        ttl: float | None = 60,
    ) -> None:
        self.path = path
        self.above = above
        self.allow_code = allow_code
        self._rules = data_centres
        self._named_rules: DataCentres | None = None
        self._text: str | None = None
        if self._identity in above:
            raise EntryError(f"The catalogue {public_url(path)} is nested in itself.")
        if len(above) >= _DEEPEST:
            raise EntryError(
                f"The catalogue {public_url(path)} is nested {len(above)} deep, which is deeper than any "
                "that is meant to be read."
            )
        super().__init__(
            name=name,
            description=description,
            metadata=metadata,
            ttl=ttl,
            getenv=False,
            getshell=False,
            storage_options=storage_options,
        )

    @property
    def _identity(self) -> str:
        return self.path if "://" in self.path else os.path.realpath(self.path)

    @property
    def directory(self) -> str:
        """What ``{{ CATALOG_DIR }}`` stands for; as Intake has it, with a slash at the end of a path."""
        return directory_of(self.path)

    def _load(self) -> None:
        text = documents.read_text(self.path, self.storage_options)
        if text == self._text:
            return
        self.take(documents.read_document(text, public_url(self.path)))
        self._text = text

    def take(self, data: Mapping[str, Any]) -> None:
        """Take in what is in the catalogue's file.

        Raises
        ------
        EntryError
            If it is no catalogue of Intake 1.
        """
        shown = public_url(self.path)
        if data.get("version") == 2 and "sources" not in data:
            raise OtherVersion(dict(data))
        sources = data.get("sources")
        if sources is None and "sources" in data:
            sources = {}
        if not isinstance(sources, Mapping):
            found = "is missing" if "sources" not in data else f"is of type {type(sources).__name__}"
            raise EntryError(
                f"{shown} is not an Intake catalogue: `sources:` {found}; it should be a mapping of names to "
                "entries."
            )
        metadata = data.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise EntryError(f"{shown} is not an Intake catalogue: `metadata:` should be a mapping.")
        if self.allow_code:
            _import_plugins(data.get("plugins"))
        self._entries = _Entries(self, sources)
        self._named_rules = None
        self.metadata = {**metadata, **(self._captured_init_kwargs.get("metadata") or {})}
        self.user_parameters.update(_parameters(metadata.get("parameters"), f"the metadata of {shown}"))
        own = data.get("name")
        self.name = self.name or (own if isinstance(own, str) else None) or self._name_of_path()
        described = data.get("description")
        self.description: str | None = self.description or (described if isinstance(described, str) else None)

    def _name_of_path(self) -> str:
        name = posixpath.splitext(posixpath.basename(self.path))[0]
        if name == "catalog":
            name = posixpath.basename(posixpath.dirname(self.path))
        return name.replace(".", "_")

    def known_data_centres(self) -> DataCentres | None:
        """Rules for its entries: those it was opened with or names, else those of the one it is nested in.

        Raises
        ------
        DataCentresError
            If the data-centres file that it names is missing or wrong.
        """
        from intake_pools.locate import rules_of

        if self._rules is None and self._named_rules is None:
            self._named_rules = named_rules(self.metadata, self.directory, self.path)
        known = self._rules or self._named_rules
        if known is None and self.enclosing is not None:
            return self.enclosing.known_data_centres()
        return rules_of(known)

    def _get_entry(self, name: str) -> Any:
        return self._get_entries()[name]()


class _Entries(Mapping[str, "PooledEntry"]):
    """Entries of a catalogue, each made when it is asked for: most never are."""

    def __init__(self, catalogue: PooledCatalog, sources: Mapping[Any, Any]) -> None:
        self._catalogue = catalogue
        if any(not isinstance(name, str) for name in sources):
            sources = {str(name): source for name, source in sources.items()}
        self._sources = sources
        self._made: dict[str, PooledEntry] = {}

    def __getitem__(self, name: str) -> PooledEntry:
        if (made := self._made.get(name)) is not None:
            return made
        entry = PooledEntry(name, self._sources[name], self._catalogue)
        # Whoever walks through a hundred thousand does not come back to one.
        if len(self._made) < 1000:
            self._made[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources


class PooledEntry(CatalogEntry):  # type: ignore[misc]  # Intake publishes no types
    """One entry of a `PooledCatalog`: plain data until it is called.

    Parameters
    ----------
    name : str
    spec : mapping
        As it is in the catalogue.
    catalogue : PooledCatalog
        The one that it is written in.
    """

    def __init__(self, name: str, spec: Any, catalogue: PooledCatalog) -> None:
        super().__init__(getenv=False, getshell=False)
        self.name = name
        self._spec = spec
        self._home = catalogue
        # Intake sets both, and reads the latter.
        self._catalog = catalogue
        self._user_parameters: list[Any] = []

    # Intake copies and pickles its own by their arguments, and takes a mapping among them apart.
    def __copy__(self) -> PooledEntry:
        return PooledEntry(self.name, self._spec, self._home)

    def __reduce__(self) -> Any:
        return PooledEntry, (self.name, self._spec, self._home)

    def _wrong(self, why: str) -> EntryError:
        return EntryError(f"{self.name} of {public_url(self._home.path)} cannot be used: {why.rstrip('.')}.")

    def driver(self) -> Driver | str:
        """Say what becomes of it.

        Raises
        ------
        EntryError
            If it cannot be used, with the reason.
        """
        spec = self._spec
        if not isinstance(spec, Mapping):
            raise self._wrong(f"it is {spec!r:.80}, not a mapping with `driver:` and `args:`")
        if "cls" in spec:
            raise self._wrong(
                "`cls:` names a class or function to call. If you trust who wrote the catalogue, open it "
                "with allow_code=True"
            )
        if "driver" not in spec:
            raise self._wrong("it has no `driver:`, such as netcdf or zarr")
        try:
            return driver_of(spec["driver"])
        except EntryError as error:
            raise self._wrong(str(error)) from None

    @property
    def located(self) -> bool:
        """Whether it is opened in a pool."""
        driver = self.driver()
        return isinstance(driver, Driver) and driver.ours

    @property
    def _container(self) -> str:
        try:
            driver = self.driver()
        except EntryError:
            return "unsupported"
        return "catalog" if isinstance(driver, str) else "xarray" if driver.ours else "other"

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata = self._spec.get("metadata") if isinstance(self._spec, Mapping) else None
        return dict(metadata) if isinstance(metadata, Mapping) else {}

    @property
    def _description(self) -> str | None:
        described = self._spec.get("description") if isinstance(self._spec, Mapping) else None
        return described if isinstance(described, str) else None

    def describe(self) -> dict[str, Any]:
        """Describe the entry; secrets are hidden."""
        spec = self._spec if isinstance(self._spec, Mapping) else {}
        parameters = spec.get("parameters")
        return {
            "name": self.name,
            "container": self._container,
            "driver": spec.get("driver"),
            "description": self._description,
            "user_parameters": [
                {"name": name, **one} if isinstance(one, Mapping) else {"name": name}
                for name, one in (parameters.items() if isinstance(parameters, Mapping) else ())
            ],
            "metadata": self._metadata,
            "args": public_options(spec.get("args") or {}),
        }

    def get(self, **given: Any) -> Any:
        """Make the source.

        Parameters
        ----------
        **given
            Values of its parameters, and arguments of its driver that replace those in the catalogue.

        Raises
        ------
        EntryError
            If it cannot be used, with the reason.
        """
        if self.trusted:
            return self._stock_source(given)
        driver = self.driver()
        try:
            copies = self._arguments(given)
            if not self._home.allow_code:
                for args, _ in copies:
                    refuse_options(args)
        except EntryError as error:
            raise self._wrong(str(error)) from None
        if isinstance(driver, str):
            source = self._nested(copies[0][0])
            if not isinstance(source, LocatedEntries):
                return source  # of version 2, where catalogues have neither names nor descriptions
        else:
            source = self._source(driver, copies)
        source.name = self.name
        source.description = self._description
        source.cat = source.catalog_object = self._home
        return source

    @property
    def trusted(self) -> bool:
        """Whether Intake opens it with all that it can run: nobody knows it, but its author is trusted."""
        if not self._home.allow_code:
            return False
        try:
            self.driver()
        except EntryError:
            return True
        return False

    def _source(self, driver: Driver, copies: list[tuple[dict[str, Any], str | None]]) -> Any:
        from intake_pools import drivers

        said_in = copies[0][1]
        if not driver.ours:
            return self._kept_by_intake(driver, copies[0][0])
        made = []
        for args, said in copies:
            metadata = self._metadata
            if driver.stock:
                try:
                    args, metadata = adapted(args, metadata)
                except EntryError as error:
                    raise self._wrong(str(error)) from None
            made.append((args, metadata, said))
        args, metadata, _ = made[0]
        if others := made[1:]:
            differing = ("urlpath", "data_centre", "storage_options", "xarray_kwargs", "chunks", "parts")
            args = dict(args)
            args["replicas"] = [
                {"said_in": said, **{key: one[key] for key in differing if key in one}}
                for one, _, said in others
            ] + list(args.get("replicas") or [])
        kinds: dict[str, Any] = {
            "pooled_netcdf": drivers.PooledNetCDFSource,
            "pooled_zarr": drivers.PooledZarrSource,
            "pooled_xarray": drivers.PooledXarraySource,
        }
        args.pop("metadata", None)
        try:
            source = kinds[driver.name](**args, metadata=metadata)
        except EntryError as error:
            raise self._wrong(str(error)) from None
        source._said_in = said_in
        return source

    def _kept_by_intake(self, driver: Driver, args: dict[str, Any]) -> Any:
        from intake.source import registry

        if unknown := [str(name) for name in args if name not in driver.arguments]:
            raise self._wrong(
                f"{driver.name} is not handed {', '.join(unknown)}, since that could run code; it is handed "
                f"{', '.join(sorted(driver.arguments))}. If you trust who wrote the catalogue, open it with "
                "allow_code=True"
            )
        refuse_writing(args.get("xarray_kwargs"), self.name)
        if driver.name not in registry:
            raise self._wrong(
                f"no driver {driver.name!r} is installed here, and this project has none of its own for it. "
                "Install the Intake plugin that has it"
            )
        args = dict(args)
        inside = args.pop("metadata", None)
        metadata = {**(inside if isinstance(inside, Mapping) else {}), **self._metadata}
        try:
            return registry[driver.name](**args, metadata=metadata)
        except Exception as error:  # whatever a driver of somebody's raises
            raise self._wrong(f"Intake's driver {driver.name!r} does not take it: {error}") from error

    def _nested(self, args: Mapping[str, Any]) -> Any:
        from intake_pools.catalogues import files_of, together

        given, home = args.get("path", args.get("urlpath")), self._home
        paths = given if isinstance(given, list) else [given]
        if not paths or not all(isinstance(path, str) and path and "\0" not in path for path in paths):
            raise self._wrong(
                f"its path is {given!r:.80}; it should be the path or URL of a catalogue, or a list of them"
            )
        options = args.get("storage_options")
        made = []
        for path in map(_tidy, paths):
            own = home.storage_options if _beside(path, home) else None
            if isinstance(options, Mapping) and options:
                own = dict(options)
            for file in files_of(path, own):
                nested = open_catalogue_at(
                    file,
                    data_centres=home._rules,
                    storage_options=own,
                    allow_code=home.allow_code,
                    above=(*home.above, home._identity),
                )
                nested.enclosing = home
                made.append(nested)
        return together(made)

    def _stock_source(self, given: Mapping[str, Any]) -> Any:
        """Let Intake make the source, with all that it can run: the user said that the author is trusted."""
        from intake.catalog.local import CatalogParser

        home = self._home
        data = {"sources": {self.name: dict(self._spec)}}
        made = CatalogParser(data, getenv=True, getshell=False, context={"root": home.directory})
        if made.errors:
            raise self._wrong("; ".join(made.errors))
        entry = made.data["data_sources"][0]
        entry._catalog = home
        return entry(**given)

    def _arguments(self, given: Mapping[str, Any]) -> list[tuple[dict[str, Any], str | None]]:
        """Its arguments, filled in: once for every data centre that has values for its parameters, else once.

        Returns
        -------
        list of (dict, str or None)
            The arguments, and what says that they are of a data centre.
        """
        args = self._spec.get("args")
        if args is None:
            args = {}
        if not isinstance(args, Mapping):
            raise EntryError(f"`args:` is {args!r:.80}, not a mapping")
        if unnamed := [name for name in args if not isinstance(name, str)]:
            raise EntryError(f"an argument is called {unnamed[0]!r:.80}, which is not a name")
        home = self._home
        own = self._spec.get("parameters")
        used = self._names_in(args)
        if used is None and not own and not home.user_parameters:
            # All of most catalogues.
            rendered = dict(args)
            rendered.update(given)
            return [(rendered, None)]
        used = used or set()
        context: dict[str, Any] = {"CATALOG_DIR": home.directory}
        wanted: list[str] = []
        if used - {"CATALOG_DIR"} and (known := home.known_data_centres()) is not None:
            valued = {name for one in known.data_centres.values() for name in one.parameters}
            wanted = sorted((used & valued) - set(given))
        if isinstance(own, Mapping) and not home.allow_code:
            # Before there is anything of Intake's.
            for name in used.intersection(own).difference(wanted, given):
                if isinstance(own[name], Mapping):
                    _refuse_lookup(name, own[name].get("default"))
        parameters = {**home.user_parameters, **_parameters(own, self.name)}
        stated = {name: value for name, value in given.items() if name in parameters}
        for name, parameter in parameters.items():
            if name in used and name not in wanted:
                context[name] = _value(parameter, stated, home.allow_code)
        context.update({name: value for name, value in given.items() if name in used})
        rest = {name: value for name, value in given.items() if name not in used and name not in parameters}
        if not wanted:
            return [({**self._render(args, context), **rest, **_same_named(parameters, args, stated)}, None)]
        assert known is not None
        located = known.with_parameters(wanted)
        if isinstance(said := args.get("data_centre", self._metadata.get("data_centre")), str):
            located = {name: evidence for name, evidence in located.items() if name == said}
        if not located:
            raise EntryError(
                f"it needs the parameters {', '.join(wanted)}, and no data centre has values for all of "
                f"them under `parameters:` in {known.origin}"
            )
        copies: list[tuple[dict[str, Any], str | None]] = []
        for name, evidence in located.items():
            values = {**context, **known.data_centres[name].parameters}
            made = {**self._render(args, values), **rest, **_same_named(parameters, args, stated)}
            made.setdefault("data_centre", name)
            copies.append((made, evidence))
        return copies

    def _names_in(self, args: Mapping[str, Any]) -> set[str] | None:
        try:
            return templates.names_in(args)
        except EntryError:
            if not self._home.allow_code:
                raise
            # Whatever it is, Intake shall fill it in.
            own = self._spec.get("parameters")
            return {*self._home.user_parameters, *(own if isinstance(own, Mapping) else ()), "CATALOG_DIR"}

    def _render(self, args: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any]
        if self._home.allow_code:
            from intake.catalog.utils import expand_templates

            made = expand_templates(dict(args), dict(context))
        else:
            made = templates.render(dict(args), context)
        return made

    def __repr__(self) -> str:
        return f"<entry {self.name} of {self._home.name}>"


def _tidy(path: str) -> str:
    return path if "://" in path else posixpath.normpath(path)


def _beside(path: str, catalogue: PooledCatalog) -> bool:
    """Whether options for the catalogue's own file system may be used for another file."""
    return path.startswith(catalogue.directory)


def _same_named(
    parameters: Mapping[str, Any], args: Mapping[str, Any], stated: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments that have a parameter's name: a value that is given for it is theirs."""
    return {name: _value(parameters[name], stated) for name in stated if name in args}


def _parameters(given: Any, where: str) -> dict[str, Any]:
    """Parameters that a catalogue or an entry has, as Intake's objects, which coerce and check values."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise EntryError(f"`parameters:` of {where} is {given!r:.80}, not a mapping of names to parameters")
    from intake.catalog.local import UserParameter

    made = {}
    for name, one in given.items():
        if not isinstance(name, str) or not isinstance(one, Mapping):
            raise EntryError(
                f"the parameter {name!r} of {where} should be a mapping with description, type, default"
            )
        kind = one.get("type")
        if kind is not None and (not isinstance(kind, str) or kind.partition("[")[0] not in COERCION_RULES):
            raise EntryError(
                f"the parameter {name!r} of {where} is of type {kind!r:.80}; it should be one of: "
                f"{', '.join(sorted(COERCION_RULES))}"
            )
        allowed = {
            key: one[key] for key in ("description", "type", "default", "min", "max", "allowed") if key in one
        }
        if allowed.get("allowed") is not None and not isinstance(allowed["allowed"], list):
            raise EntryError(f"`allowed:` of the parameter {name!r} of {where} should be a list")
        try:
            made[name] = UserParameter(name, **allowed)
        except Exception as error:  # conversions of all kinds
            raise EntryError(f"the parameter {name!r} of {where} cannot be read: {error}") from None
    return made


_LOOKED_UP = ("env(", "client_env(", "shell(", "client_shell(")


def _refuse_lookup(name: str, default: Any) -> None:
    """Refuse a default that would be looked up or filled in."""
    if not isinstance(default, str):
        return
    if default.lstrip().startswith(_LOOKED_UP):
        raise EntryError(
            f"the default of the parameter {name!r} is {default[:40]!r}, which is not looked up for a "
            f"catalogue. Give a value: `cat.ENTRY({name}=…)`, or `parameters: {{{name}: …}}` of a data "
            "centre in the data-centres file"
        )
    # As Intake fills in nothing there, neither do we; but what is there could be filled in later on.
    if "{{" in default or "{%" in default:
        raise EntryError(f"the default of the parameter {name!r} is a template, which is not filled in")


def _value(parameter: Any, stated: Mapping[str, Any], allow_code: bool = False) -> Any:
    """Get the value of a parameter: the stated one, else its default, which is neither looked up nor run."""
    if isinstance(parameter, Mapping):  # as Intake allows for those that are given to a catalogue
        return stated.get(parameter["name"], parameter.get("default"))
    name = parameter.name
    value = stated.get(name, parameter._default)
    if name not in stated and isinstance(value, str) and allow_code:
        from intake.catalog.utils import expand_defaults

        value = expand_defaults(value)
    elif name not in stated:
        _refuse_lookup(name, value)
    try:
        return parameter.validate(coerce(parameter.type, value) if value is None else value)
    except Exception as error:  # conversions of all kinds
        if value is None:
            raise EntryError(
                f"the parameter {name!r} has no default, and needs a value ({error}): `cat.ENTRY({name}=…)`"
            ) from None
        raise EntryError(f"the parameter {name!r} cannot be {value!r:.80}: {error}") from None


def _import_plugins(plugins: Any) -> None:
    """Import what a catalogue names, as Intake does: the user said that its author is trusted."""
    import importlib

    listed = plugins.get("source") if isinstance(plugins, Mapping) else None
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, Mapping) and isinstance(one.get("module"), str):
            try:
                importlib.import_module(one["module"])
            except ImportError as error:
                raise EntryError(
                    f"The plugin {one['module']!r} of the catalogue is not installed: {error}"
                ) from None


def open_catalogue_at(
    path: str,
    *,
    data_centres: DataCentres | None = None,
    storage_options: dict[str, Any] | None = None,
    allow_code: bool = False,
    above: tuple[str, ...] = (),
) -> Any:
    """Open the catalogue in one file.

    Parameters
    ----------
    path, data_centres, storage_options, allow_code
        As in `open_catalog`.
    above : tuple of str
        Paths of the catalogues that it is nested in.

    Raises
    ------
    EntryError
        If it is not a catalogue, or nested in itself.
    """
    try:
        return PooledCatalog(
            path,
            data_centres=data_centres,
            storage_options=storage_options,
            allow_code=allow_code,
            above=above,
        )
    except OtherVersion as other:
        from intake_pools.intake2 import PooledCatalog2

        return PooledCatalog2.of_document(
            other.data,
            path,
            data_centres=data_centres,
            storage_options=storage_options,
            allow_code=allow_code,
        )
