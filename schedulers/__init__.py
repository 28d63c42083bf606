"""Sigma schedules and solvers of the flow ODE. Import neither the model nor the caches."""
