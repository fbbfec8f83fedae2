from qloracle_conformance.mutants.nested import faulty, lawful, opaque

MODULES = (faulty, opaque, lawful)
