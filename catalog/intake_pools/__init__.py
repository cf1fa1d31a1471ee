"""Intake entries that are opened and read in the data centre that holds them.

Where to look, from what a user touches down to the bytes:

- `catalogues` (`open_catalog`, `load_from_catalog`) and `cli`; `lookup`: the entry that has a path;
  `forgetting`.
- Catalogues as others wrote them: `documents` reads YAML; `intake1` and `intake2` make catalogues of it;
  `known_drivers`, `safe_options` and `templates` say what of it is let through; `summary` shows it;
  `rules` finds the data-centres file that it goes by.
- `drivers` (Intake 1) and `readers` (Intake 2) are thin: both are `located`, and make an entry of
  `entries`.
- `locate` says which data centre hosts a URL; `asking` asks stores and pools where no rule knows; `urls`
  takes paths, URLs and options apart, without their secrets.
- `opening` opens an entry on a worker of its pool; `series` its many files; `replicas` chooses a copy;
  `remembered` keeps what was opened.
- In the pool: `stores` opens a file or store once in each process, by `filesystems`, `references`,
  `icechunk_stores`, `netcdf_lock` and `netcdf_parts`; `marks` tells versions apart.
- What travels: `mosaics` are variables that know how to be read, `recipes` makes Datasets of them.
- `writing` writes where the target lives; `shipped` finds the catalogues in the wheel; `demo` is the
  demo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dask_pools.lazy_names import lazily

if TYPE_CHECKING:
    from intake_pools.catalogues import load_from_catalog, open_catalog
    from intake_pools.forgetting import forget

__all__ = ["forget", "load_from_catalog", "open_catalog"]

# pydantic and the like take a tenth of a second to import; workers import this package, too.
__getattr__, __dir__ = lazily(
    __name__,
    {"forget": "forgetting", "load_from_catalog": "catalogues", "open_catalog": "catalogues"},
)
