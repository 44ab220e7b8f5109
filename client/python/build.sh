#!/usr/bin/env bash
# Builds the driver and its Python wheel, and prints the wheel's path.
#
#   client/python/build.sh [DIR]     DIR: where the wheel goes, by default python/wheel in the target directory
#
# THALLUS_DRIVER is a driver's shared library that was built before, so that none is built.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
dist=${1:-$target/python/wheel}
stage=$target/python/stage
venv=$target/python/build-venv

library=${THALLUS_DRIVER:-}
if [ -z "$library" ]; then
    cargo build --release --package thallus-adbc --quiet
    library=$target/release/libadbc_driver_thallus.so
fi

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'setuptools>=77'

# A copy of the sources: no build writes into the checkout.
rm -rf "$stage"
mkdir -p "$stage" "$dist"
cp -r client/python/{pyproject.toml,setup.py,README.md,adbc_driver_thallus} "$stage"
rm -rf "$stage"/adbc_driver_thallus/__pycache__
packaged=$stage/adbc_driver_thallus/libadbc_driver_thallus.so
cp "$library" "$packaged"
strip --strip-unneeded "$packaged"
platform=$("$venv/bin/python" client/python/platform_tag.py "$packaged")
rm -f "$dist"/adbc_driver_thallus-*.whl
THALLUS_WHEEL_PLATFORM=$platform "$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check \
    --no-build-isolation --no-deps --wheel-dir "$dist" "$stage"
ls "$dist"/adbc_driver_thallus-*.whl
