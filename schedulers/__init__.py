"""Sigma grids and solvers of the flow ODE."""
