"""The catalogues that come with this package: beside this file in a wheel, in ``catalogs/`` in a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]

_HERE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Path of a catalogue or data-centres file that comes with this package.

    Parameters
    ----------
    name : str
        Such as ``"demo.yaml"``.

    Raises
    ------
    FileNotFoundError
        If there is none of this name; the message lists those there are.
    """
    directories = [_HERE / "catalogs", _HERE.parents[1] / "catalogs"]
    directory = next((place for place in directories if (place / "demo.yaml").is_file()), directories[0])
    if not (directory / name).is_file():
        known = ", ".join(sorted(path.name for path in directory.glob("*.yaml")))
        raise FileNotFoundError(
            f"No catalogue {name!r} comes with intake-pools. These do: {known or 'none'}."
        )
    return directory / name
