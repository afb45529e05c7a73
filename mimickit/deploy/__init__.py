"""Policies that leave the repository: exported files, and the loop that runs them in plain MuJoCo."""
