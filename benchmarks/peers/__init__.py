"""Measurements. Each module is a program; ``make bench`` runs them all."""
