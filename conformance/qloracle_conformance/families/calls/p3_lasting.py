"""P3. Results last: what a call returned reads the same 50 ms later and after later calls.

A result that is computed lazily, written by another stream or thread, or held in a buffer that the
next call overwrites, is right only for a moment.  Every kept result is read and hashed again.

(A pager's arrays change by design; the programs of S12 read them again and again.)
"""
