"""Puts args/, data/ and tests/acceptance/ into the wheel, as mimickit/_shipped; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithShippedFiles(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable installation finds them in the checkout
            for folder in ("args", "data", "tests/acceptance"):
                target = Path(self.build_lib, "mimickit", "_shipped", folder)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithShippedFiles})
