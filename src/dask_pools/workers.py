"""The ``workers:`` section of the data-centres file: how a data centre gets its workers.

A section reads::

    workers:
      launcher: slurm
      threads: 4
      memory: 16 GiB
      maximum: 20
      slurm: {queue: compute, account: weather}

The keys are the same for every launcher, but for the one named after it: that has the launcher's own options.
Which launchers there are and what options they have is found by entry point (`LAUNCHERS`), so that other
packages can add some. This module starts nothing and knows neither clusters nor the rest of the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from dask_pools.config import in_seconds
from dask_pools.pins import RESOURCE_PREFIX

__all__ = ["LAUNCHERS", "Bytes", "LauncherOptions", "Listed", "Seconds", "Workers", "parse"]

LAUNCHERS = "dask_pools.launchers"
"""Entry point group: the name of a launcher, and its class of `LauncherOptions`."""

WRONG = "wrong_section"
"""Type of the one error that `parse` raises; its context has all of them."""


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = int(parse_bytes(value))
        except ValueError:
            raise ValueError(f"{value!r} is no size; write one as in 16 GiB") from None
    if isinstance(value, int) and value < 10**6:
        raise ValueError(f"{value} bytes are too few; write a size with its unit, as in 16 GiB")
    return value  # what is no number is for pydantic to refuse


def _seconds(value: Any) -> Any:
    return in_seconds(value) if isinstance(value, str) else value  # the rest is for pydantic


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size, as in ``16 GiB`` or in bytes."""

Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
"""A time, in seconds or as in ``10 min``."""

Listed = Annotated[tuple[str, ...], BeforeValidator(_tuple)]
"""A list of texts."""


class LauncherOptions(BaseModel):
    """Options of one launcher, and the way to it; launchers derive theirs from this class.

    An entry point of the group `LAUNCHERS` makes it known under the launcher's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def here(self) -> bool:
        """Whether workers are on the network of the machine that starts them, and so on its mesh."""
        return False

    def cannot(self, workers: Workers) -> Mapping[str, str]:
        """Tell what this launcher cannot do of what the rest of the section asks for.

        Parameters
        ----------
        workers : Workers

        Returns
        -------
        mapping of str to str
            By key of the section (``memory``, ``slurm.queue``): why not, and what to write instead.
        """
        return {}

    def launcher(self, pool: str, workers: Workers) -> Any:
        """Make the `dask_pools.cluster.launchers.Launcher` of a pool.

        Called when the first worker may be needed, and not before: what only this needs is imported here.

        Parameters
        ----------
        pool : str
        workers : Workers
        """
        raise NotImplementedError


class Workers(BaseModel):
    """What a data-centres file says about the workers of one data centre.

    Attributes
    ----------
    launcher : str
        Starts them.
    threads : int
        Tasks that each runs at once.
    memory : int or None
        Bytes that each may use; None for no limit.
    directory : str or None
        Directory that the tasks run in, where the workers are.
    env : dict of str to str
        Environment variables of the workers.
    resources : dict of str to float
        Dask resources that each offers, besides that of its pool.
    minimum : int
        How many there are from the start.
    maximum : int or None
        The most there may be; None for no limit.
    provision : {"auto", "ask", "never"}
        Whether workers are started when they are needed, after a question, or only if there are to be a
        minimum or somebody asks for a number.
    askers : tuple of str or None
        Users who may ask for workers when the pool has none; None for everybody.
    max_hours : float or None
        The most that all workers of the pool may use together, in hours of one worker; None for no limit.
    timeout : float or None
        Seconds after which a worker that has not come is given up; None leaves it to the launcher.
    idle : float or None
        Seconds without work after which workers above the minimum go; None leaves it to the cluster.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    launcher: str
    threads: Annotated[int, Field(ge=1)] = 1
    memory: Bytes | None = None
    directory: Annotated[str, Field(min_length=1)] | None = None
    env: dict[str, str] = Field(default_factory=dict)
    resources: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    minimum: Annotated[int, Field(ge=0)] = 0
    maximum: Annotated[int, Field(ge=0)] | None = None
    provision: Literal["auto", "ask", "never"] = "auto"
    askers: Listed | None = None
    max_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    timeout: Seconds | None = None
    idle: Seconds | None = None

    @property
    def options(self) -> LauncherOptions:
        """The launcher's own options."""
        options = getattr(self, self.launcher)
        assert isinstance(options, LauncherOptions)
        return options


def parse(value: Any) -> Workers:
    """Check a ``workers:`` section.

    Raises
    ------
    PydanticCustomError
        Of type `WRONG`. Its context has ``errors``, as `pydantic.ValidationError.errors` gives them, and
        ``model``, the class that says what is allowed.
    """
    if isinstance(value, Workers):
        return value
    model: type[Workers] = Workers
    errors: list[Any] = []
    if isinstance(value, dict) and isinstance(name := value.get("launcher"), str):
        try:
            model = _model(name)
        except LookupError as error:
            raise _wrong([_error("launcher", str(error.args[0]), name)], model) from None
    try:
        workers = model.model_validate(value)
    except ValidationError as error:
        raise _wrong(error.errors(include_url=False), model) from None
    if workers.maximum is not None and workers.minimum > workers.maximum:
        errors.append(_error("minimum", f"{workers.minimum} is more than the maximum of {workers.maximum}"))
    errors += [
        _error(f"env.{name}", "no environment variable can be called so")
        for name in workers.env
        if not name or "=" in name or "\0" in name
    ]
    errors += [
        _error(f"resources.{name}", f"resources called {RESOURCE_PREFIX}… are those of pools; leave it out")
        for name in workers.resources
        if name.startswith(RESOURCE_PREFIX)
    ]
    errors += [_error(key, why) for key, why in workers.options.cannot(workers).items()]
    if errors:
        raise _wrong(errors, model)
    return workers


def _error(key: str, message: str, value: Any = None) -> dict[str, Any]:
    return {"type": "value_error", "loc": tuple(key.split(".")), "msg": message, "input": value}


def _wrong(errors: list[Any], model: type[Workers]) -> PydanticCustomError:
    return PydanticCustomError(WRONG, "wrong", {"errors": errors, "model": model})


@cache
def _model(launcher: str) -> type[Workers]:
    """Class of the sections of a launcher: all have its own options under its name."""
    options = _options(launcher)
    needed = any(field.is_required() for field in options.model_fields.values())
    default = ... if needed else options()
    fields: dict[str, Any] = {launcher: (options, default)}
    return create_model(f"Workers_{launcher}", __base__=Workers, **fields)


def _options(launcher: str) -> type[LauncherOptions]:
    """Class of a launcher's own options.

    Raises
    ------
    LookupError
        If there is no such launcher, or what should provide it does not work.
    """
    known = sorted(entry_points(group=LAUNCHERS).names)
    found = entry_points(group=LAUNCHERS, name=launcher)
    if not found:
        near = difflib.get_close_matches(launcher, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LookupError(
            f"there is no launcher {launcher!r}.{hint} Known here: {', '.join(known)}. Other packages may "
            "provide more"
        )
    entry_point = next(iter(found))
    # Somebody else's code: whatever it raises should be told together with whose it is.
    try:
        options = entry_point.load()
    except Exception as error:
        raise LookupError(
            f"launcher {launcher!r} ({entry_point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from None
    if not (isinstance(options, type) and issubclass(options, LauncherOptions)):
        raise LookupError(f"launcher {launcher!r} ({entry_point.value}) is no class of LauncherOptions")
    if not launcher.isidentifier() or launcher in Workers.model_fields:
        raise LookupError(f"launcher {launcher!r} ({entry_point.value}) needs another name: one free word")
    return options
