from qloracle_conformance.mutants.products import faulty, lawful

MODULES = (faulty, lawful)
