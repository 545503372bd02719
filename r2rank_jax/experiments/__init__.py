"""Experiments: a grid of seeds and arms, trained, evaluated once on the test lists, and written to a page.

design      what an experiment is: its configuration, seeds, arms, comparisons, other candidates and probes
datasets    its prepared folders, made if they are missing, and what they must have in common
jobs        the commands that train, evaluate and probe the arms
running     these commands run in parallel, and resumed
cost        counted work of the arms: training, and ranking a list
baselines   baselines, tuned on the validation lists
probed      what the ranking of the probed arms rests on
gather      metrics per user of all arms and seeds -> results/NAME.json
page        results/*.json -> RESULTS.md
tables      the tables of the page
"""
