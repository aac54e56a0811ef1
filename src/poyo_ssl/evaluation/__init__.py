"""Room `evaluation`: predictions files, their scores, simple baselines and the statistics of comparisons.

A new metric: metrics.py and scores.py. A new baseline: baselines.py. What a predictions file must fulfil: checks.py.
Which baseline gains refer to, and what a row of results.json holds: leaderboard.py. Nothing is imported here, so that
scores of files wait for neither torch nor the baselines' libraries.
"""
