"""The inputs that every implementation meets, in layers: values, shapes, edits for Hypothesis."""
