"""Probes: what a ranking rests on. Changes to rationales, histories and titles, and measures of their effect.

These modules change arrays and summarize numbers. `runs/probe/` lets a policy read the changed lists.
"""
