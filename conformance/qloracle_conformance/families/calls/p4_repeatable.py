"""P4. The same call gives the same bits: two runs are equal.

Calls made for other rules are repeated later in another order, between calls of the same shape with
other content and other scales, so that a result cached by pointer, shape or seed shows itself.

Of a pager this holds for what is read, not for how often its pages move.
"""
