"""The commands of `python -m sweeps`, one file each, which import what they need when they run."""
