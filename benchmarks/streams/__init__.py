"""Load on the live service: generator, figures, report. `bench_streams.py` is its shell."""
