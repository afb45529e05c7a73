"""The acceptance suite: every case of ``args/`` through training, test and film (``pytest -m longcycle``).

``plugin`` is what ``conftest.py`` loads. Nothing here imports torch, Warp or Newton: cases run in their own processes.
"""
