"""What a study costs before anything runs: jobs, operations, hours and bytes by phase.

Operations are counted (multiply-adds of each network at its size, times the passes that a method makes) and divided by
a device's rate. Rates stand in rates.yaml, each with its source; what is assumed is marked, what has no rate is said
to have none. A training step counts as three forward passes, and one whose gradient is differentiated again as nine.
"""

from diver.cost.counting import network_cost
from diver.cost.estimate import Estimate, Phase, chain_passes
from diver.cost.reckoning import load_rates, reckon, seconds, shown

__all__ = ["Estimate", "Phase", "chain_passes", "load_rates", "network_cost", "reckon", "seconds", "shown"]
