"""Where the name of an architecture leads: our folder, an installed package, or a file of the user's.

    1  models/architectures/NAME.py            dropped in, nothing to register
    2  entry points of `kvmark.architectures`  NAME = "package.module", from any installed package
    3  files that KVMARK_ARCHITECTURES lists   /path/to/NAME.py, separated as in PATH

A name leads to one place: a file or package may not hide another one's name. The variable is inherited, so
processes that kvmark starts know these files, too. A file is imported as if it lay in our folder: both
`from models.decoder import Decoder` and `from ..decoder import Decoder` work in it.

Nothing here imports torch; modules are imported when an architecture is asked for.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .spec import SpecError, registry

FOLDER = Path(__file__).parent / "architectures"
GROUP = "kvmark.architectures"
VARIABLE = "KVMARK_ARCHITECTURES"


def names() -> list[str]:
    """Every architecture that a spec may name. Raises SpecError where two places share a name."""
    return sorted({*registry(FOLDER), *_installed(), *_files()})


def source(name: str) -> Path | None:
    """The file behind a name, found without importing it; None if an installed module has none."""
    if name in registry(FOLDER):
        return FOLDER / f"{name}.py"
    if name in (installed := _installed()):
        try:
            found = importlib.util.find_spec(installed[name].module)
        except (ImportError, ValueError):
            return None
        return Path(found.origin) if found and found.origin and found.has_location else None
    if name in (files := _files()):
        return files[name]
    raise SpecError(f"Unknown architecture '{name}'; known: {', '.join(names())}.")


def docline(name: str) -> str:
    """First line of an architecture's docstring, read without importing it."""
    file = source(name)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file else ast.parse("")
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return f"(cannot be read: {file})"
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def fingerprint(name: str) -> str | None:
    """SHA-256 of the file behind a name that is not ours; None for ours: the sources' hash has them."""
    file = source(name)
    if file is None or file.parent == FOLDER:
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


def module(name: str) -> ModuleType:
    """Import the architecture of this name. Raises SpecError: one sentence, also for broken files."""
    file = source(name)
    what = f"Architecture file '{file}'" if file else f"Architecture '{name}'"
    try:
        if name in registry(FOLDER):
            found = importlib.import_module(f"{__package__}.architectures.{name}")
        elif name in (installed := _installed()):
            found = installed[name].load()
        else:
            found = _load(name, file)
    except SyntaxError as error:
        raise SpecError(f"{what} has a syntax error in line {error.lineno or 1}: {error.msg}.") from None
    except MemoryError:  # the machine's affair, not the file's
        raise
    except (Exception, SystemExit) as error:
        said = (str(error).strip().splitlines() or [""])[0]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        raise SpecError(f"{what} cannot be imported ({type(error).__name__}: {said}{where}).") from None
    return _checked(found, what)


@contextmanager
def known_file(path: Path) -> Iterator[str]:
    """Make a file known for the length of a `with`, also to child processes; gives its name."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join(filter(None, [before, str(path.resolve())]))
    try:
        _files()
        yield path.stem
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


# --- the three places -------------------------------------------------------------------------------


def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points by name, less those that our folder has."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    own = registry(FOLDER)
    for point in importlib.metadata.entry_points(group=GROUP):
        where = f"the installed package '{point.dist.name if point.dist else '?'}'"
        if point.name in own:
            raise SpecError(
                f"'{point.name}' of {where} hides {_own_file(point.name)}; uninstall or rename it."
            )
        if found.setdefault(point.name, point).value != point.value:
            raise SpecError(f"'{point.name}' of {where} hides another package's; uninstall one of them.")
    return found


def _files() -> dict[str, Path]:
    """Files of the variable by name."""
    found: dict[str, Path] = {}
    for path in map(Path, filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))):
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise SpecError(
                f"'{path}' must be a Python file whose name is an identifier, such as my_arch.py."
            )
        if not path.is_file():
            raise SpecError(f"Architecture file '{path}' is not there.")
        if path.stem in registry(FOLDER):
            raise SpecError(f"'{path}' hides {_own_file(path.stem)}; rename it.")
        if path.stem in (installed := _installed()):
            raise SpecError(f"'{path}' hides {installed[path.stem].value}, which is installed; rename it.")
        if found.setdefault(path.stem, path).resolve() != path.resolve():
            raise SpecError(f"'{path}' hides '{found[path.stem]}'; rename one of them.")
    return found


def _own_file(name: str) -> str:
    return f"models/architectures/{name}.py"


# --- import -----------------------------------------------------------------------------------------

#: Files already imported: what they held then, and the module. Equal content, equal classes.
_loaded: dict[Path, tuple[bytes, ModuleType]] = {}


def _load(name: str, file: Path) -> ModuleType:
    """Import a file as a member of our folder, so that relative imports reach what they would there."""
    content, file = file.read_bytes(), file.resolve()
    if file in _loaded and _loaded[file][0] == content:
        return _loaded[file][1]
    full = f"{__package__}.architectures.{name}"
    spec = importlib.util.spec_from_file_location(full, file)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[full] = found  # before it runs: dataclasses look their module up
    try:
        exec(compile(content, str(file), "exec"), found.__dict__)  # the file as it is now, no stale bytecode
    except BaseException:
        del sys.modules[full]
        raise
    _loaded[file] = content, found
    return found


def _checked(found: Any, what: str) -> Any:
    """What every architecture defines. Raises SpecError naming what is missing."""
    from .architecture import Architecture

    for needed in ("Options", "Model"):
        if not isinstance(getattr(found, needed, None), type):
            raise SpecError(f"{what} defines no class {needed}; an architecture defines Options and Model.")
    if not dataclasses.is_dataclass(found.Options):
        raise SpecError(f"{what} must make Options a frozen dataclass.")
    if not issubclass(found.Model, Architecture):
        raise SpecError(f"{what} must derive Model from models.architecture.Architecture.")
    return found
