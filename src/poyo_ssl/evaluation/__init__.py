"""Room `evaluation`: predictions files, their scores, simple baselines and the statistics of comparisons.

It knows no model: everything here works on a predictions file or on plain arrays. Nothing is imported here, so that
scores of files wait for neither torch nor the baselines' libraries.
"""
