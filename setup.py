"""Puts the recipes inside the built package; everything else is in pyproject.toml."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An editable install finds ``recipes/`` beside the package, a built one as ``flowrl/recipes/``."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("recipes", Path(self.build_lib) / "flowrl" / "recipes", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
