"""How fast it is: models and operations timed beside PyTorch and JAX, and what the machine can do.

Results are compared before anything is timed, candidates take turns, and medians are reported.
"""
