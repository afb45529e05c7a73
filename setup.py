"""Puts args/ and data/ into the wheel, as mimickit/_shipped; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithShippedFiles(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable installation finds them in the checkout
            for folder in ("args", "data"):
                target = Path(self.build_lib, "mimickit", "_shipped", folder)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(folder, target)


setup(cmdclass={"build_py": WithShippedFiles})
