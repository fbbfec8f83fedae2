"""Faulty implementations of L0, in the order of the rules: what goes wrong with NF4 in the wild.

Each is the reference with one step replaced: a row names the rule that must notice it, tells the
story and its source, and builds the function.
"""

from qloracle_conformance.mutants.codes import blocks, codes, decoding, lawful, tables

MODULES = (tables, blocks, codes, decoding, lawful)
