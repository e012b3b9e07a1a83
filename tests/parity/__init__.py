"""What `tests/test_golden.py` runs: one file for each sort of recorded case."""
