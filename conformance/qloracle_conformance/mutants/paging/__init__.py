from qloracle_conformance.mutants.paging import books, faulty, lawful, saved, shared

MODULES = (faulty, shared, saved, books, lawful)
