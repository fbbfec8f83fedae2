from qloracle_conformance.mutants.lora import faulty, lawful

MODULES = (faulty, lawful)
