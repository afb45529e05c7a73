"""Motion clips: checking, repairing, retargeting, authoring and drawing them. The programs are in ``tools/``."""
