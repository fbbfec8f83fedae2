"""The forms in which the same array can be handed over (rule P5), by name."""

FORMS = {
    "strided": "strided: every second element of a larger one",
    "transposed": "transposed: their axes lie in the opposite order",
    "offset": "that start 64 elements into their memory",
    "unaligned": "that start 1 element into their memory",
    "expanded": "expanded where all elements are equal: one in memory stands for all",
    "side_stream": "on a side stream, on which they arrive late",
    "second_device": "on a second device",
    "out": "and out=",
}
VIEWS = ("strided", "transposed", "offset", "unaligned", "expanded")  # of another array
