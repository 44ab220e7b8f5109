#!/usr/bin/env python3
"""Prints the platform tag of a wheel with this shared library: the oldest glibc that has all its symbols.

usage: platform_tag.py LIBRARY
"""

import platform
import re
import subprocess
import sys

# Libraries that every system of a manylinux tag has.
EVERYWHERE = {
    "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6",
    "libpthread.so.0", "librt.so.1",
}


def read(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    library = sys.argv[1]
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", read("-d", library)))
    if needed - EVERYWHERE:
        sys.exit(f"{library} needs {', '.join(sorted(needed - EVERYWHERE))}, which not every system has")
    versions = re.findall(r"\bGLIBC_(\d+)\.(\d+)", read("--version-info", library))
    major, minor = max((int(major), int(minor)) for major, minor in versions)
    # The oldest tag that installers know by this form.
    print(f"manylinux_{major}_{max(minor, 17)}_{platform.machine()}")


main()
