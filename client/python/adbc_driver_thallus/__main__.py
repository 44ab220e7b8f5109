"""``python -m adbc_driver_thallus install-manifest``: makes the driver known to driver managers as ``thallus``."""

import argparse
import pathlib

from . import _manifest, driver_path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adbc_driver_thallus", description="The ADBC driver for Thallus.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("path", help="print the path of the driver's shared library")
    install = commands.add_parser("install-manifest", help="let driver managers find the driver as 'thallus'")
    uninstall = commands.add_parser("uninstall-manifest", help="undo install-manifest")
    for command in (install, uninstall):
        command.add_argument("--directory", type=pathlib.Path, help=f"by default {_manifest.directory()}")
    arguments = parser.parse_args()
    if arguments.command == "path":
        print(driver_path())
    elif arguments.command == "install-manifest":
        print(f"installed {_manifest.install(arguments.directory)}")
    else:
        removed = _manifest.uninstall(arguments.directory)
        print(f"removed {removed}" if removed else "there was no manifest")


main()
