"""TOOD and its relatives: one-stage object detectors as combinations of five choices. Needs torch and torchvision alone."""

__version__ = "0.1.0"
