"""Scheduling and running sequences: schedule, forward, sample, commit."""
