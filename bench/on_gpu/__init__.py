"""The parts of bench/gpu.py. They import NumPy, CuPy and light modules of cae_raw only."""
