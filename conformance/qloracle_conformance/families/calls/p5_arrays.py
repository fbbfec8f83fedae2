"""P5. Arrays in any form: a result does not depend on how its inputs lie in memory, nor on where.

An implementation that takes the arrays of torch or CuPy is also handed views: *strided* (every
second element of a larger array), *transposed* (the axes lie in the opposite order), *offset* (64
elements into their memory, where code that reads the storage from its start goes wrong),
*unaligned* (one element into it, where loads of 16 bytes are not allowed) and *expanded* (equal
rows or elements stored once, where the next one in memory belongs to something else).  On a GPU of
torch the same calls are made on a *side_stream*, on which the inputs arrive late, and on a
*second_device* that is not the current one, if there is one.  The memory around a view must not
change (P2).

A function that takes `out` is called with buffers (a tuple of them for several results) that hold
other bits before the call: they must hold the results after it, and so must whatever is returned.

Every array of the call has the form, but for *expanded*: there one array at a time has equal rows
or elements.  The data are those of S3 and S8, whole numbers for products and LoRA layers, whose
results no lawful rounding can move, and ordinary steps of Adam; what is wrong in the plain form,
too, is left to the rule that found it there.  An implementation that refuses views declares so:
``limits = {"views": []}``.
"""
