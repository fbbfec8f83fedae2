from qloracle_conformance.mutants.calls import faulty, forms

MODULES = (faulty, forms)
