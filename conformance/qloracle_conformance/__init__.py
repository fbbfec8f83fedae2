"""The conformance kit: judges anybody's QLoRA kernels against the executable specification.

An implementation is any module, object or file that offers some of the functions of
`qloracle_conformance.protocol` under their names.  From the shell: ``qloracle verify IMPL``.
"""
