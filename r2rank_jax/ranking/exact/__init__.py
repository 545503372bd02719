"""Expectations over Plackett-Luce rankings without sampling: quadrature over arrival times, and sums over subsets."""
