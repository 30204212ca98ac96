"""Datasets: where they come from, how they are checked, and the one file that the other rooms read."""
