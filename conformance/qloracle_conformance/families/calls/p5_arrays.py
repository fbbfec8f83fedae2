"""P5. Arrays in any form: a result does not depend on how its inputs lie in memory, nor on where.

An implementation that takes the arrays of torch or CuPy is also handed views: *strided* (every
second element of a larger array), *transposed* (the axes lie in the opposite order), *offset* (64
elements into their memory: who reads the storage from its start reads something else), *unaligned*
(one element into it: who loads 16 bytes at a time must not) and *expanded* (equal elements that are
one in memory: who reads the next one reads what is not the tensor's).  On a GPU of torch the same
calls are made on a *side_stream*, on which the inputs arrive late, and on a *second_device*
that is not the current one, if there is one.  The memory around a view must not change (P2).

A function that takes `out` is called with buffers for it (of several results a tuple) that hold
other bits before: they must hold the results afterwards, and what is returned, if anything, must be
the same.

Every array of the call has the form.  The data are those of S3 and S8, whole numbers for products
and LoRA layers, whose results no lawful rounding can move, and ordinary steps of Adam; what is
wrong in the plain form as well is left to the rule that found it there.  An implementation that
refuses views declares so: ``limits = {"views": []}``.
"""
