"""Manifests: files by which driver managers of every language find the driver under the name ``thallus``."""

import os
import pathlib
import sys
from typing import Optional

from . import ENTRYPOINT, __version__, driver_path

NAME = "thallus.toml"


def directory() -> pathlib.Path:
    """The directory in which driver managers look: of this environment if it is one, else of this user."""
    if sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ:
        return pathlib.Path(sys.prefix) / "etc" / "adbc" / "drivers"
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Application Support" / "ADBC" / "Drivers"
    configuration = os.environ.get("XDG_CONFIG_HOME") or str(pathlib.Path.home() / ".config")
    return pathlib.Path(configuration) / "adbc" / "drivers"


def text() -> str:
    """The manifest."""
    return f"""manifest_version = 1
name = "ADBC Driver for Thallus"
version = "{__version__}"
license = "Apache-2.0"
url = "https://github.com/thallus-rs/thallus"

[ADBC]
version = "1.1.0"

[Driver]
entrypoint = "{ENTRYPOINT}"
shared = {quoted(driver_path())}
"""


def quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or c in '"\\\x7f' else c for c in text)
    return f'"{escaped}"'


def install(into: Optional[pathlib.Path] = None) -> pathlib.Path:
    """Write the manifest, and return its path. Replaces an older one as a whole."""
    path = (into or directory()) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{NAME}.{os.getpid()}")
    beside.write_text(text(), encoding="utf-8")
    os.replace(beside, path)
    return path


def uninstall(of: Optional[pathlib.Path] = None) -> Optional[pathlib.Path]:
    """Remove the manifest, and return its path if there was one."""
    path = (of or directory()) / NAME
    try:
        path.unlink()
    except FileNotFoundError:
        return None
    return path
