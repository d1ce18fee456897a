"""Puts recipes and bench files inside the built package; everything else is in pyproject.toml."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An editable install finds ``recipes/`` and ``benchmarks/`` beside the package, a built one inside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("recipes", "benchmarks"):
                folder = Path(self.build_lib) / "flowrl" / name
                copytree(name, folder, dirs_exist_ok=True, ignore=ignore_patterns("*.py", "__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
