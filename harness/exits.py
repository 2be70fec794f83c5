"""How a command ends: one sentence on stderr and a documented exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

EXIT_FAILED_CELL, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_INTERRUPTED = 1, 2, 3, 130


@contextmanager
def sentences(*also: type[Exception]) -> Iterator[None]:
    """Turn expected problems, and those of types `also`, into one sentence on stderr and an exit code."""
    from models.spec import SpecError

    from .loading import NoDevice
    from .store import StoreError
    from .supervise import EnvironmentRefuses

    try:
        yield
    except (EnvironmentRefuses, NoDevice) as error:
        stop(str(error), EXIT_ENVIRONMENT)
    except (SpecError, StoreError) as error:
        stop(str(error), EXIT_USAGE)
    except ValueError as error:  # TextError, WeightsError, PretrainedError, TokenizerError, UsageError
        if type(error) is ValueError and ValueError not in also:
            raise
        stop(str(error), EXIT_USAGE)
    except also as error:
        stop(str(error), EXIT_FAILED_CELL)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        stop(f"{error.filename} cannot be written ({error.strerror}).", EXIT_USAGE)
    except MemoryError:
        stop("This machine has too little memory for what was asked.", EXIT_ENVIRONMENT)
    except OSError as error:
        stop(f"{error.filename or 'A file'} cannot be used ({error.strerror}).", EXIT_ENVIRONMENT)
    except KeyboardInterrupt:
        stop("Interrupted; the same command goes on where this one stopped.", EXIT_INTERRUPTED)


def stop(sentence: str, code: int) -> NoReturn:
    """One sentence on stderr, and out."""
    # As it is, no capital: the first word may be the name of a file.
    print(f"kvmark: {sentence}", file=sys.stderr)
    raise typer.Exit(code)
