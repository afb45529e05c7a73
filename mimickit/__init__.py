"""Physics-based characters learn to imitate motion clips, simulated in parallel worlds by the Newton engine."""
