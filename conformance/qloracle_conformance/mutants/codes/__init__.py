"""Faulty implementations of L0, in the order of the rules: what goes wrong with NF4 in the wild.

Each is the reference with one step replaced.  The docstring is the story and its source, `kills`
the rule that must notice it.
"""
