"""Experiments: a grid of seeds and arms, trained, evaluated once on the test lists, and written to a page.

design    what an experiment is: its configuration, seeds, arms and comparisons
jobs      the commands that train and evaluate the arms, run in parallel and resumed
gather    metrics per user of all arms and seeds -> results/NAME.json
page      results/*.json -> RESULTS.md
"""
