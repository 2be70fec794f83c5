"""Break each law once, in a copy, and see that a test fails: `make mutate`, or this file with numbers.

`mutations.toml` lists the changes. One that no test notices, or whose text is no longer in the code,
counts as survived, and then the exit code is 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_to(folder: Path) -> None:
    """All packages and the tests, fresh."""
    for name in ("harness", "models", "suites", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def first_failure(folder: Path, tests: str) -> str | None:
    """Name of the first failing test, None if all pass. Raises RuntimeError if pytest itself fails."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        f"{sys.executable} -m pytest {tests} -x -p no:cacheprovider",
        shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout[-1500:] + done.stderr[-500:])
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.M)
    return found.group(1) if found else None


def main() -> int:
    mutations = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))["mutation"]
    chosen = [int(number) for number in sys.argv[1:]] or range(len(mutations))
    survived = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in chosen:
            mutation = mutations[number]
            copy_to(folder)
            path = folder / mutation["file"]
            text = path.read_text(encoding="utf-8")
            failed = None
            if mutation["old"] in text:
                path.write_text(text.replace(mutation["old"], mutation["new"], 1), encoding="utf-8")
                failed = first_failure(folder, mutation["tests"])
            survived += failed is None
            verdict = failed or ("SURVIVED" if mutation["old"] in text else "SURVIVED: text not found")
            print(f"{number:3} {mutation['law']}: {verdict}", flush=True)
    print(f"{len(chosen)} mutations, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
