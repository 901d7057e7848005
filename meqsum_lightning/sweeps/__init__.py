"""Sweeps: many trainings behind one command, on one machine or several."""
