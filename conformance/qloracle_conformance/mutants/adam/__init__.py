from qloracle_conformance.mutants.adam import faulty, faulty_8bit, lawful

MODULES = (faulty, faulty_8bit, lawful)
