from qloracle_conformance.mutants.nested import faulty, opaque

MODULES = (faulty, opaque)
