"""The wheel itself: its tag, its manifest, its types."""

import os
import pathlib
import subprocess
import sys
import tomllib

import adbc_driver_manager.dbapi
import adbc_driver_thallus
import pytest
from adbc_driver_thallus import _manifest
from conftest import Server


def module(*arguments: str) -> str:
    command = [sys.executable, "-m", "adbc_driver_thallus", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_manifest_lets_every_driver_manager_find_the_driver(server: Server) -> None:
    assert module("install-manifest") == f"installed {_manifest.directory() / 'thallus.toml'}"
    try:
        connect = adbc_driver_manager.dbapi.connect
        with connect(server.uri(), autocommit=True) as connection, connection.cursor() as cursor:
            assert cursor.execute("SELECT 1").fetchone() == (1,)
        with connect("thallus", server.uri(), autocommit=True) as connection, connection.cursor() as cursor:
            assert cursor.execute("SELECT 2").fetchone() == (2,)
    finally:
        assert module("uninstall-manifest").startswith("removed ")
    assert module("uninstall-manifest") == "there was no manifest"


def test_manifests_hold_any_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_manifest, "driver_path", lambda: '/a "b"\\c\nd.so')
    read = tomllib.loads(_manifest.install(tmp_path / "new").read_text(encoding="utf-8"))
    assert read["Driver"] == {"entrypoint": "AdbcDriverThallusInit", "shared": '/a "b"\\c\nd.so'}
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "thallus.toml"]


def test_the_library_exports_its_functions_and_needs_no_fabric() -> None:
    path = adbc_driver_thallus.driver_path()
    assert module("path") == path
    needed = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    for library in ("ucp", "uct", "ibverbs", "rdmacm", "stdc++"):
        assert library not in needed
    assert "NODELETE" in needed
    exported = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1] for line in exported.splitlines()}
    assert {"AdbcDriverThallusInit", "AdbcDriverInit"} <= names


def test_auditwheel_agrees_with_the_tag() -> None:
    wheel = pathlib.Path(os.environ["THALLUS_WHEEL"])
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], check=True, capture_output=True, text=True
    ).stdout
    tag = wheel.stem.split("-")[-1]
    assert f'"{tag}"' in " ".join(shown.split()), shown


def test_the_types_are_sound(tmp_path: pathlib.Path) -> None:
    sources = pathlib.Path(adbc_driver_thallus.__file__).parent
    assert (sources / "py.typed").is_file()
    command = [sys.executable, "-m", "mypy", "--strict", "--package", "adbc_driver_thallus"]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
