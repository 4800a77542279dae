"""Masks of glioma cells in phase contrast: training at the microscope's own resolution."""

__version__ = "0.1.0"
