"""Runs beside each other: their figures as a table, their curves, the same images by each."""
