"""The one family of errors: each message says what was wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

# What torch's allocator says comes without its type where the native library has called it.
_GPU_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
)


class ZcpipeError(Exception):
    """Base of every error zcpipe raises on purpose.

    ``exit_code`` is what the command line ends with when the error reaches it. ``abrupt`` says that a library which the
    error comes from cannot be trusted to let the process end by itself.
    """

    exit_code = 1
    abrupt = False


class UsageError(ZcpipeError):
    """A name, text, number or option that means nothing here (exit code 2)."""

    exit_code = 2


class PrecisionError(UsageError):
    """Numbers of a type that is not computed in (exit code 2)."""


class DataError(ZcpipeError):
    """A file or table that is damaged, foreign, unwritable or does not fit (exit code 4)."""

    exit_code = 4


class IdentityMismatch(DataError):  # noqa: N818 - what happened, as users say it
    """An existing table that was made under another identity (exit code 4)."""


class CapabilityError(ZcpipeError):
    """Something this machine or installation lacks, such as a device (exit code 5)."""

    exit_code = 5


class UnsupportedError(CapabilityError):
    """A network has what a proxy cannot measure, or lacks what it needs (exit code 5)."""


class NonfiniteError(ZcpipeError):
    """A score that is not a number, where it is known why; it ends as a proxy's failure."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; only torch's GPU allocator has a type for that."""
    import torch  # slow to import

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    return "DefaultCPUAllocator" in said or said.startswith(_GPU_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception means that this process can use its GPU no more.

    After a failed assertion or an illegal access in a kernel every later call of CUDA in the process fails as well.
    Errors that would pass cannot be told from those.
    """
    import torch  # slow to import

    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and str(error).startswith(("CUDA error: ", "CUDA: "))
    )


def reason_of(error: BaseException) -> str:
    """Say in one line, which any file can hold, what an exception that is not ours says."""
    try:
        said = str(error)
    except Exception:
        said = ""  # it is its type that is known then
    line = f"{type(error).__name__}: {(said.splitlines() or [''])[0]}".rstrip(": ")
    return line.encode(errors="backslashreplace").decode()  # a name of a file may be no text


def debugging() -> bool:
    """Whether the environment variable ZCPIPE_DEBUG asks to be shown where errors come from."""
    return bool(os.environ.get("ZCPIPE_DEBUG"))


def trace(error: BaseException) -> None:
    """Show on stderr where an error comes from that ends as one line or a failure, if that is asked for."""
    if debugging():
        traceback.print_exception(error)
        sys.stderr.flush()  # a worker's goes to its supervisor before its rows do


@contextmanager
def asking(space: str, what: str) -> Iterator[None]:
    """Name a space, which may be anybody's, in whatever it raises that is not an error of ours.

    Args:
        space: its name.
        what: it is asked for ("the key of its architecture 7").

    Raises:
        ZcpipeError: it raised something else.
    """
    try:
        yield
    except (ZcpipeError, KeyboardInterrupt, GeneratorExit):  # the last where an interruption hit between two lines
        raise
    except BaseException as error:
        trace(error)
        raise ZcpipeError(
            f"the space {space} cannot give {what}: {reason_of(error)}; mend the space, or choose another"
        ) from error


def first_fault(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Say in one line what is wrong first in the fields of a pydantic model: which, why, and what it got.

    Args:
        error: what pydantic found.
        known: the model's fields, to name those near one that it lacks.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1 and known:
        return str(unknown_name("name", where, known))
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}{got}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not registered, naming the near ones.

    Args:
        kind: what the name should have named, in the singular ("space", "proxy", "column").
        name: the name that was given.
        known: every name that would have been accepted.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
