"""The wheel's tag: any Python 3, one platform. The package loads the driver by its path, as no extension module."""

import os

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Binary(Distribution):
    """A distribution with a shared library."""

    def has_ext_modules(self) -> bool:
        return True


class Tagged(bdist_wheel):
    """A wheel for the platform that build.sh has found the library to need."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = os.environ.get("THALLUS_WHEEL_PLATFORM") or super().get_tag()[2]
        return "py3", "none", platform


setup(distclass=Binary, cmdclass={"bdist_wheel": Tagged})
