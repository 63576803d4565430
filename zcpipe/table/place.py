"""Where tables are: directories of this machine, and prefixes in the buckets of object stores.

A `Place` has pathlib's names and operators either way (`/`, `name`, `parent`, `with_name`); what reads, writes, lists
and locks is in `zcpipe.table.files` and `zcpipe.table.lock`, which alone know one from the other.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zcpipe.errors import CapabilityError, UsageError

if TYPE_CHECKING:
    from upath import UPath

Place: TypeAlias = "Path | UPath"

# The package that speaks to the store, the extra of ours that brings it, and its options. Listings must show what other
# processes did meanwhile, so nothing is cached. Failing requests are tried again for some seconds, not minutes.
_STORES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "s3": ("s3fs", "s3", {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 4}}}),
    "gs": ("gcsfs", "gcs", {}),
}


def locate(path: str | Place) -> Place:
    """Return the place that a text names: a local path, ``s3://BUCKET/PREFIX`` or ``gs://BUCKET/PREFIX``.

    Raises:
        UsageError: no text, another scheme, a bucket without a prefix, or a URI that went through ``Path``, which
            spoils it.
        CapabilityError: the package for that store is not installed.
    """
    if not isinstance(path, str):
        return _not_a_uri(path) if isinstance(path, Path) else path
    scheme, separator, rest = path.partition("://")
    if not path:
        raise UsageError("an empty text names no place; is a variable unset? the current directory is .")
    if not separator:
        return Path(path)
    if scheme not in _STORES:
        raise UsageError(f"{path!r} is on no supported storage; give a local path, s3://BUCKET/PREFIX or gs://...")
    bucket, _, prefix = rest.strip("/").partition("/")
    if not (bucket and prefix) or "//" in prefix or rest.startswith("/"):
        raise UsageError(f"{path!r} does not name a prefix in a bucket; give {scheme}://BUCKET/PREFIX")
    package, extra, options = _STORES[scheme]
    if find_spec(package) is None:
        raise CapabilityError(f"{path} needs the package {package}; install it with `pip install 'zcpipe[{extra}]'`")
    from upath import UPath  # slow to import for who has local tables only

    if not logging.getLogger(package).handlers:  # what the client logs, it raises too
        logging.getLogger(package).addHandler(logging.NullHandler())
    place: UPath = UPath(f"{scheme}://{bucket}/{prefix}", use_listings_cache=False, **options)
    return place


def beside(place: Place, ending: str) -> Place:
    """Return the place with a further ending to its name, wherever a link to a local one lies."""
    return Path(f"{place.resolve()}{ending}") if isinstance(place, Path) else place.with_name(place.name + ending)


def _not_a_uri(path: Path) -> Path:
    first = path.parts[0] if path.parts else ""
    if first.removesuffix(":") in _STORES and first.endswith(":"):
        raise UsageError(f"pathlib spoils URIs ({path}); give {first}//BUCKET/PREFIX as text")
    return path
