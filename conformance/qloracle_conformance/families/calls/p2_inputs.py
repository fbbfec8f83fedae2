"""P2. Inputs stay as they are: no call changes the arrays that it is given.

Every array is hashed before and after every call that any rule makes.  (Buffers passed as `out=`
are outputs, and exempt.)
"""
